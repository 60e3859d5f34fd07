"""The raw pictures, where data/ is missing: from DVC's remote or cache, else the built-in landscapes, rendered.

    python -m tesserae.data.obtain

Landscapes are rendered only where data.dvc stands for them: where the pull of other pictures fails, no landscapes
take their place. `meta` in data.dvc holds the hash and the parameters of the landscapes that were rendered last;
where that hash is the hash of the data, the data are those landscapes.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from tesserae.data.listing import find_source
from tesserae.data.workers import print_tenths
from tesserae.errors import TesseraeError, command, writing
from tesserae.files import find_root, write_atomically
from tesserae.params import Params, load_params
from tesserae.scenes.render import write_scenes

TRACKED = "data.dvc"
LANDSCAPES, SCENES = "landscapes", "scenes"  # keys in its `meta`: their hash, and the parameters
HALF = Path(".dvc/tmp/tesserae/obtaining")  # there while data/ is being filled


class ObtainError(TesseraeError):
    """The raw pictures are missing, and nothing provides them."""


def obtain(root: Path, params: Params) -> None:
    """Fill data/ where prepare.source is that folder and it is missing, or was left half filled by a stop.

    Nothing is done where the pictures lie elsewhere or are there. Raises ObtainError, ScenesError.
    """
    data, half = root / "data", root / HALF
    if find_source(params.prepare.source, root) != data:
        return
    if data.is_symlink() and not data.exists():
        raise ObtainError(f"data is a link to {data.readlink()}, which is not there: repair the link or remove it.")
    if data.exists() and not half.exists():
        return
    tracked = root / TRACKED
    if tracked.is_file():
        why = _from_dvc(root, half)
        if why is None:
            return
        if not is_landscapes(tracked):
            raise ObtainError(
                f"The {_number(tracked)} files that {TRACKED} records for data/ are not here: {why}. Bring them with "
                "dvc pull from a remote that has them, copy them to data/, or run python -m tesserae.scenes for "
                "the built-in landscapes in their place.")
    half.unlink(missing_ok=True)
    scenes = params.scenes
    write_scenes(data, scenes.count, scenes.size, scenes.seed, print_tenths("landscapes"))
    if tracked.is_file():
        _record(root, params)


def is_outdated(root: Path, params: Params) -> bool:
    """Whether data.dvc stands for landscapes of other parameters than `scenes` has now."""
    tracked = root / TRACKED
    if not is_landscapes(tracked):
        return False
    return _content(tracked)["meta"].get(SCENES) not in (None, params.scenes.model_dump())


def render_anew(root: Path, params: Params) -> None:
    """Put the landscapes that the parameters ask for in the place of those in data/, and record them in data.dvc.

    Nothing is lost: the old ones are rendered again, to the bit, when the parameters are as they were. Where this is
    stopped, `obtain` fills data/. Raises ScenesError.
    """
    scenes = params.scenes
    print("data/ holds the landscapes of other parameters: it is rendered anew.", flush=True)
    shutil.rmtree(root / "data", ignore_errors=True)
    write_scenes(root / "data", scenes.count, scenes.size, scenes.seed, print_tenths("landscapes"))
    _record(root, params)


def is_landscapes(tracked: Path) -> bool:
    """Whether a .dvc file stands for the built-in landscapes as they were rendered last."""
    content = _content(tracked)
    try:
        return content["outs"][0]["md5"] == content["meta"][LANDSCAPES]
    except (KeyError, IndexError, TypeError):
        return False


def _from_dvc(root: Path, half: Path) -> str | None:
    """Fill data/ by DVC; None where that was done, else why it could not be."""
    with writing(half):
        half.parent.mkdir(parents=True, exist_ok=True)
        half.touch()
    remotes = _dvc(root, "remote", "list").stdout.strip()
    done = _dvc(root, "pull", "--quiet", TRACKED) if remotes else None
    if done is None or done.returncode:
        cached = _dvc(root, "checkout", "--quiet", TRACKED)
        if cached.returncode:
            half.unlink()
            with suppress(OSError):
                (root / "data").rmdir()  # where DVC left an empty one
            if done is None:
                return "no remote is set (dvc remote add), and they are not in DVC's cache"
            return f"dvc pull failed ({_last_line(done.stderr)})"
    half.unlink()
    return None


def _record(root: Path, params: Params) -> None:
    """Have data.dvc, and its `meta`, stand for the landscapes that were just rendered."""
    done = _dvc(root, "commit", "--force", "--quiet", TRACKED)
    if done.returncode:
        print(f"{TRACKED} does not record the landscapes ({_last_line(done.stderr)}); they are in data/ all the "
              "same.", file=sys.stderr)
        return
    tracked = root / TRACKED
    content = _content(tracked)
    with suppress(KeyError, IndexError, TypeError):
        made = {LANDSCAPES: content["outs"][0]["md5"], SCENES: params.scenes.model_dump()}
        before = content.get("meta") or {}
        if before | made != before:
            _write(tracked, content | {"meta": before | made})


def _content(tracked: Path) -> Any:
    from ruamel.yaml import YAML

    try:
        return YAML(typ="safe", pure=True).load(tracked.read_text(encoding="utf-8"))
    except Exception:  # the parser has many ways to fail
        return None


def _write(tracked: Path, content: Any) -> None:
    from io import StringIO

    from ruamel.yaml import YAML

    text, yaml = StringIO(), YAML(typ="safe", pure=True)
    yaml.default_flow_style, yaml.sort_base_mapping_type_on_output = False, False
    yaml.dump(content, text)
    write_atomically(tracked, text.getvalue().encode())


def _number(tracked: Path) -> str:
    with suppress(KeyError, IndexError, TypeError):
        return f"{_content(tracked)['outs'][0]['nfiles']:,}"
    return "raw"


def _dvc(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "dvc", *words], cwd=root, capture_output=True, text=True)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines
    return errors[-1].removeprefix("ERROR: ").rstrip(".") if errors else "no reason was given"


def main(arguments: list[str] | None = None) -> None:
    """The command. It exits with 1 and a sentence where the pictures are not there in the end."""
    parser = argparse.ArgumentParser("python -m tesserae.data.obtain", description="Bring the raw pictures to data/.")
    parser.parse_args(arguments)
    with command():
        root = find_root()
        obtain(root, load_params(root / "params.yaml"))


if __name__ == "__main__":
    main()
