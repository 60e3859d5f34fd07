"""Repairs what would stop the next `dvc`: what a killed one left, and a folder without git.

    python -m tesserae.pipeline.repair

`make setup` and `make repro` do this. DVC itself passes over the locks of processes that have ended. But it writes
two of its files in place, so a kill at that instant leaves half of one: `.dvc/tmp/rwlock`, which says who reads and
writes what, and `dvc.lock`, which says what is done. DVC then asks for a file to be removed by hand.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tesserae.errors import TesseraeError, command, see_writable, sentence_of
from tesserae.files import find_root, replacing, write_atomically
from tesserae.params import ParamsError
from tesserae.params.listed import with_listed_keys

LOCK = "dvc.lock"
KEPT = Path(".dvc/tmp/tesserae.dvc.lock")  # dvc.lock as it was when the last stage began
OUTPUTS = ("prepared", "checkpoints", "models", "codes", "samples", "reports")  # folders that stages write
PAUSE = 0.5  # seconds in which a living dvc has finished what it writes


def repair(root: Path) -> list[str]:
    """Repair what lies at the root of a DVC repository; return a sentence for each thing that was done."""
    with suppress(ParamsError):  # the check of the pipeline says it
        return [*complete(root), *_repair_dvc(root)]
    return _repair_dvc(root)


def _repair_dvc(root: Path) -> list[str]:
    return [*_repair_rwlock(root / ".dvc/tmp/rwlock"), *_repair_lock(root), *_fit_git(root)]


def complete(root: Path) -> list[str]:
    """Add to params.yaml the keys that dvc.yaml lists and the file lacks; return a sentence where there were some.

    Files of earlier versions lack a few, and short files many. Raises ParamsError for a file that is not allowed.
    """
    path = root / "params.yaml"
    try:
        before = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []  # `load_params` says what is wrong
    text, missing = with_listed_keys(before, os.path.relpath(path))
    if not missing:
        return []
    write_atomically(path, text.encode())
    return [f"{os.path.relpath(path)} had no {', '.join(missing)}: added at its end, with the default."]


def keep_lock(root: Path) -> None:
    """Keep a copy of dvc.lock, as a stage begins: no dvc writes it then. A full disk does not matter here."""
    with suppress(OSError, TesseraeError), replacing(root / KEPT) as aside:
        shutil.copyfile(root / LOCK, aside)


def _repair_rwlock(path: Path) -> list[str]:
    """Remove the locks where they are half written, or all those of processes that are no dvc any more."""
    for pause in (PAUSE, 0):
        with suppress(FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            if not path.exists() or _is_sound(json.loads(path.read_text(encoding="utf-8"))):
                return []
        time.sleep(pause)
    path.unlink(missing_ok=True)
    return ["A killed dvc had left its locks in .dvc/tmp/rwlock: they are removed."]


def _is_sound(locks: dict[str, Any]) -> bool:
    """Whether a living dvc holds one of these locks, or nobody any. The others' locks DVC takes out by itself."""
    held = [*locks.get("read", {}).values(), *locks.get("write", {}).values()]
    infos = [info for each in held for info in (each if isinstance(each, list) else [each])]
    return not infos or any(map(_lives, infos))


def _lives(info: dict[str, Any]) -> bool:
    import psutil

    try:
        return str(info["cmd"]) in " ".join(psutil.Process(int(info["pid"])).cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False
    except psutil.Error:  # of another user
        return True


def _repair_lock(root: Path) -> list[str]:
    path, kept = root / LOCK, root / KEPT
    if not path.is_file():
        return []
    before = kept.read_bytes() if kept.is_file() else b""
    for pause in (PAUSE, 0):
        content = path.read_bytes()
        if content.strip() and (content == before or _is_lock(content)):
            return []
        time.sleep(pause)
    for words, better in (("as it was when the last stage began", before), ("as it was committed", _committed(root))):
        if _is_lock(better):
            write_atomically(path, better)
            return [f"A killed dvc had left half of {LOCK}: it is {words} again."]
    path.unlink()
    return [f"A killed dvc had left half of {LOCK}, and there is no older one: it is removed, and every stage is "
            "looked at again."]


def _is_lock(content: bytes) -> bool:
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from ruamel.yaml import YAML

    try:
        COMPILED_LOCKFILE_SCHEMA(YAML(typ="safe", pure=True).load(content.decode()))
    except Exception:  # the parser and the schema have many ways to refuse
        return False
    return True


def _committed(root: Path) -> bytes:
    return _git(root, "show", f"HEAD:./{LOCK}") or b""


def _fit_git(root: Path) -> list[str]:
    """Without git, as in a ZIP of the repository, DVC works only where its settings allow it."""
    settings = root / ".dvc/config.local"
    without = settings.is_file() and "no_scm = true" in settings.read_text(encoding="utf-8")
    has_git = (root / ".git").exists() or _git(root, "rev-parse") is not None
    if has_git == (not without) or not settings.parent.is_dir():
        return []
    change = ["--unset", "core.no_scm"] if has_git else ["core.no_scm", "true"]
    subprocess.run([sys.executable, "-m", "dvc", "config", "-q", "--local", *change], cwd=root, timeout=120)
    return [] if has_git else ["There is no git here: the pipeline runs, but has no experiments (dvc exp) and no "
                               "commits; `git init && git add -A && git commit -m begin` gives them."]


def _git(root: Path, *words: str) -> bytes | None:
    """What git prints; None where it fails or is not there."""
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


def main() -> None:
    """The command; it succeeds where there is nothing to do, too."""
    with command():
        root = find_root()
        made = [each for name in OUTPUTS for each in (root / name, *(root / name).glob("*/"))]
        see_writable(root, root / ".dvc", root / ".dvc" / "tmp", root / ".dvc" / "cache", *made)
        try:
            for sentence in repair(root):
                print(sentence)
        except OSError as error:
            raise TesseraeError(sentence_of(error) or str(error)) from None


if __name__ == "__main__":
    main()
