"""What would stop the next `dvc`, put right: what a killed one left, and a folder without git.

    python -m tesserae.pipeline.repair

`make setup` and `make repro` do this.

DVC writes two of its files in place, so a kill at that instant leaves half of one: `.dvc/tmp/rwlock`, which says who
reads and writes what, and `dvc.lock`, which says what is done. DVC then asks for a file to be removed by hand.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tesserae.errors import TesseraeError, see_writable, sentence_of

LOCK = "dvc.lock"
KEPT = Path(".dvc/tmp/tesserae.dvc.lock")  # dvc.lock as it was when the last stage began
OUTPUTS = ("prepared", "checkpoints", "models", "codes", "samples", "reports")  # folders that stages write
TRIES, PAUSE = 4, 0.3  # a living dvc may be writing at this moment


def mend(root: Path) -> list[str]:
    """Put right what lies at the root of a DVC repository; a sentence for each thing that was done."""
    return _mend_rwlock(root / ".dvc/tmp/rwlock") + _mend_lock(root) + _fit_git(root)


def keep_lock(root: Path) -> None:
    """Keep a copy of dvc.lock, as a stage begins: no dvc writes it then. A full disk does not matter here."""
    kept = root / KEPT
    aside = kept.with_name(f"{kept.name}.part")
    with suppress(OSError):
        shutil.copyfile(root / LOCK, aside)
        aside.replace(kept)


def _mend_rwlock(path: Path) -> list[str]:
    for attempt in range(TRIES):
        if not path.is_file():
            return []
        try:
            locks = json.loads(path.read_text(encoding="utf-8"))
            held = [info for infos in (*locks.get("read", {}).values(), *locks.get("write", {}).values())
                    for info in (infos if isinstance(infos, list) else [infos])]
            ended = {info["pid"] for info in held if not _lives(info)}
            break
        except (ValueError, KeyError, TypeError, AttributeError):
            if attempt + 1 == TRIES:
                path.unlink(missing_ok=True)
                return ["A killed dvc had left half of .dvc/tmp/rwlock: it is removed."]
            time.sleep(PAUSE)
    if not ended:
        return []
    locks = {kind: {place: left for place, infos in locks.get(kind, {}).items() if (left := _without(infos, ended))}
             for kind in ("read", "write")}
    aside = path.with_name(f"{path.name}.part")
    aside.write_text(json.dumps(locks), encoding="utf-8")
    aside.replace(path)
    return ["A killed dvc had left its locks in .dvc/tmp/rwlock: they are taken out."]


def _lives(info: dict[str, Any]) -> bool:
    """Whether the process is still the dvc that it was: after a restart its number may be another's."""
    import psutil

    try:
        command = psutil.Process(int(info["pid"])).cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False
    except psutil.Error:  # not ours to look at
        return True
    return str(info["cmd"]) in " ".join(command)


def _without(infos: Any, ended: set[int]) -> Any:
    if isinstance(infos, list):
        return [info for info in infos if info["pid"] not in ended]
    return infos if infos["pid"] not in ended else None


def _mend_lock(root: Path) -> list[str]:
    path, kept = root / LOCK, root / KEPT
    if not path.is_file():
        return []
    for attempt in range(TRIES):
        content = path.read_bytes()
        if content.strip() and ((kept.is_file() and content == kept.read_bytes()) or _is_lock(content)):
            return []
        if attempt + 1 < TRIES:
            time.sleep(PAUSE)
    committed = _committed(root)
    for words, better in (("as it was when the last stage began", kept.read_bytes() if kept.is_file() else b""),
                          ("as it was committed", committed)):
        if better.strip() and _is_lock(better):
            aside = path.with_name(f"{path.name}.part")
            aside.write_bytes(better)
            aside.replace(path)
            return [f"A killed dvc had left half of {LOCK}: it is {words} again."]
    path.unlink()
    return [f"A killed dvc had left half of {LOCK}, and there is no older one: it is removed, and every stage is "
            "looked at again."]


def _is_lock(content: bytes) -> bool:
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from ruamel.yaml import YAML

    try:
        values = YAML(typ="safe", pure=True).load(content.decode())
        COMPILED_LOCKFILE_SCHEMA(values)
    except Exception:  # the parser and the schema have many ways to refuse
        return False
    return True


def _committed(root: Path) -> bytes:
    try:
        done = subprocess.run(["git", "-C", str(root), "show", f"HEAD:./{LOCK}"], capture_output=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return b""
    return done.stdout if done.returncode == 0 else b""


def _fit_git(root: Path) -> list[str]:
    """Without git, as in a ZIP of the repository, DVC works only where its settings say so."""
    settings = root / ".dvc/config.local"
    said = settings.is_file() and "no_scm = true" in settings.read_text(encoding="utf-8")
    has_git = (root / ".git").exists() or _git_knows(root)
    if has_git == (not said) or not settings.parent.is_dir():
        return []
    change = ["--unset", "core.no_scm"] if has_git else ["core.no_scm", "true"]
    subprocess.run([sys.executable, "-m", "dvc", "config", "-q", "--local", *change], cwd=root, timeout=120)
    return [] if has_git else ["There is no git here: the pipeline runs, but has no experiments (dvc exp) and no "
                               "commits; `git init && git add -A && git commit -m begin` gives them."]


def _git_knows(root: Path) -> bool:
    try:
        return subprocess.run(["git", "-C", str(root), "rev-parse"], capture_output=True, timeout=10).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


def main() -> int:
    """The command: 0 also where there was nothing to do."""
    from tesserae.files import find_root

    try:
        root = find_root()
        made = [each for name in OUTPUTS for each in (root / name, *(root / name).glob("*/"))]
        see_writable(root, root / ".dvc", root / ".dvc" / "tmp", root / ".dvc" / "cache", *made)
        for sentence in mend(root):
            print(sentence)
    except TesseraeError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        sentence = sentence_of(error)
        if sentence is None:
            raise
        print(sentence, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
