"""The first stage: what cannot work is refused here, before DVC removes what the stages made.

    python -m tesserae.pipeline.check

Every other stage depends on what this one writes into .checked/: `params`, whose content never changes;
`source.json`, which changes with the raw pictures; and the code of each notebook, which does not change when the
notebook is saved. So it runs each time, and the others only when something of theirs changed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tesserae.data.contents import Contents, contents_of
from tesserae.data.listing import check_columns, find_source, list_source
from tesserae.data.obtain import TRACKED, is_landscapes, is_outdated, render_anew
from tesserae.data.sources import read_made
from tesserae.data.tables import HUB_KEYS, check_hub
from tesserae.errors import TesseraeError, is_full
from tesserae.files import find_root, write_atomically
from tesserae.named import check_named
from tesserae.params import Params, load_params
from tesserae.pipeline.earlier import moved_message, set_aside
from tesserae.pipeline.parent import end_with_dvc
from tesserae.pipeline.repair import complete, keep_lock
from tesserae.source_code.notebooks import code_of_notebook, read_notebook
from tesserae.stage import inception_weights
from tesserae.tracking.describe import flatten
from tesserae.tracking.store import real_root

CHECKED = ".checked"
SOUND = "What params.yaml asks for can be done.\n"
STATE = Path(".dvc/tmp/tesserae")  # at the repository's root: what the last check saw
OUTPUTS = ("prepared", "models", "codes", "samples", "reports", "checkpoints", "earlier", CHECKED, ".inputs")
PATIENCE = 5.0  # seconds of reading pictures after which progress is printed


class CheckError(TesseraeError, ValueError):
    """Something that a run needs is not there."""


def check(root: Path) -> None:
    """Check the parameters and what they name, and write .checked/. Raises TesseraeError.

    In the repository itself, not in a copy of it that DVC makes for a queued experiment, it also moves what stages
    made that are no more to earlier/, and has data.dvc follow the pictures in data/.
    """
    home = real_root(root)
    for sentence in complete(root):
        print(sentence)
    params = load_params(os.path.relpath(root / "params.yaml"))
    check_named(params, root, home, prepared=False)
    _weights(inception_weights(params, root, home), home)
    notebooks = {path.stem: code_of_notebook(read_notebook(path))
                 for path in sorted((root / "notebooks").glob("[0-9]*.ipynb"))}
    source = _source(params, root, home)
    if root == home:
        _log_changes(params, home)
        moved = set_aside(root, params)
        if moved:
            print(moved_message(moved))
    files = {"params": SOUND, "source.json": json.dumps(source, indent=2) + "\n"}
    _write(root / CHECKED, files | {f"notebooks/{name}.py": code for name, code in notebooks.items()})
    if root == home:
        with suppress(OSError):  # it only serves a sentence
            shutil.copyfile(root / "params.yaml", _state(home) / "params.yaml")


def _weights(file: Path | None, home: Path) -> None:
    """Read the Inception weights that are named, where they were not read yet, for they may be damaged."""
    if file is None:
        return
    about = file.stat()
    known, mark = _state(home) / "weights.json", [str(file), about.st_size, about.st_mtime_ns]
    if _read(known) == mark:
        return
    from tesserae.evaluation.features import feature_network

    feature_network(file)
    with suppress(OSError):
        known.write_text(json.dumps(mark), encoding="utf-8")


def _source(params: Params, root: Path, home: Path) -> dict[str, Any]:
    """What stands for the raw pictures: prepare depends on it."""
    named = params.prepare.source
    place = find_source(named, home)
    if not isinstance(place, Path):
        if not _is_prepared(params, root):
            check_hub(str(place), params.prepare.hub)
        return {"hub": str(place)}
    if not place.is_dir():
        raise CheckError(_missing(named, place, home))
    resolved = place.resolve()
    if home.is_relative_to(resolved) or any(resolved.is_relative_to(home / output) for output in OUTPUTS):
        raise CheckError(f"prepare.source = {named} holds what the pipeline itself writes: set it to a folder that "
                         "holds pictures alone.")
    try:
        contents = contents_of(place, _state(home) / "contents.sqlite", _late(f"files of {named}"))
    except OSError as error:
        raise CheckError(f"prepare.source = {named} cannot be read ({error.strerror}): see to its rights.") from None
    if not contents.files:
        raise CheckError(f"prepare.source = {named} is an empty folder: put pictures there, or name another one.")
    wanted = {name: block.column for name, block in params.vqgan.items() if block.column != "image"}
    if wanted:
        check_columns(named, list_source(place).columns, wanted)
    if resolved != (home / "data").resolve():
        return {"files": contents.files, "contents": contents.digest}
    if root == home:
        _follow(home, contents)
    if not place.is_symlink() and is_outdated(home, params):
        if root != home:
            raise CheckError("scenes has other values than the landscapes in data/, which an experiment in a copy of "
                             "the repository shares: run it without --queue and --temp, as dvc exp run -S "
                             f"scenes.seed={params.scenes.seed}.")
        render_anew(home, params)
        contents = contents_of(place, _state(home) / "contents.sqlite", _late(f"files of {named}"))
    return {"files": contents.files, "contents": contents.digest}


def _is_prepared(params: Params, root: Path) -> bool:
    """Whether the prepared set is of the source that is wanted, so that nothing is fetched again."""
    with suppress(TesseraeError):
        made = read_made(root / "prepared").get("prepare", {})
        wanted = {"source": params.prepare.source, **{key: getattr(params.prepare, key) for key in HUB_KEYS.values()}}
        return all(made.get(key) == value for key, value in wanted.items())
    return False


def _missing(named: str, place: Path, home: Path) -> str:
    if place.is_symlink():
        return f"prepare.source = {named} is a link to {os.readlink(place)}, which is not there: repair the link."
    if place.exists():
        return f"prepare.source = {named} is a file: unpack it where it is one, and name the folder of the pictures."
    if place == home / "data":
        return ("data/ is not there: make data fetches it or renders the landscapes, and make own "
                "FROM=path/to/pictures takes your own.")
    return f"prepare.source = {named} is not there: put the pictures there, or name the folder that holds them."


def _log_changes(params: Params, home: Path) -> None:
    """Print what is easily overlooked: another preset has another source; `scenes` is for landscapes alone."""
    with suppress(TesseraeError):  # the first check of all, or a file of an older version
        before = load_params(_state(home) / "params.yaml")
        if before.prepare.source != params.prepare.source:
            print(f"prepare.source was {before.prepare.source} and is {params.prepare.source} now.")
        if before.scenes != params.scenes and not is_landscapes(home / TRACKED):
            print(f"scenes has changed, and the pictures have not: {TRACKED} does not say that they are landscapes. "
                  "To have some rendered, set prepare.source to data, move data/ away, and run make data.")


def _follow(home: Path, contents: Contents) -> None:
    """Have data.dvc record what data/ holds, as `dvc repro` does where a stage depends on data/ itself.

    Then experiments, which begin with a checkout, get these pictures, and `dvc push` sends them.
    """
    if not (home / "data.dvc").is_file():
        return
    known = _state(home) / "data.json"
    if _read(known) == [contents.digest, (home / "data.dvc").read_text(encoding="utf-8")]:
        return
    command = [sys.executable, "-m", "dvc", "commit", "--force", "--quiet", "data.dvc"]
    done = subprocess.run(command, cwd=home, capture_output=True, text=True)
    if done.returncode:
        why = (done.stderr or done.stdout).strip().splitlines()
        print(f"data.dvc does not record the pictures in data/ ({why[-1] if why else 'dvc commit failed'}); the work "
              "goes on with them.", file=sys.stderr)
        return
    text = (home / "data.dvc").read_text(encoding="utf-8")
    with suppress(OSError):
        known.write_text(json.dumps([contents.digest, text]), encoding="utf-8")


def _write(folder: Path, files: dict[str, str]) -> None:
    """Make `folder` hold these files and no others; what is there already stays untouched."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_bytes() != text.encode():
            write_atomically(path, text.encode())
    for path in folder.rglob("*"):
        if path.is_file() and path.relative_to(folder).as_posix() not in files:
            path.unlink()


def _late(what: str) -> Callable[[int, int], None]:
    """Return a progress function that prints nothing for what is quick."""
    last = time.monotonic()

    def progress(done: int, count: int) -> None:
        nonlocal last
        if time.monotonic() - last > PATIENCE:
            last = time.monotonic()
            print(f"{done:,} of {count:,} {what} read", flush=True)

    return progress


def _state(home: Path) -> Path:
    folder = home / STATE
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def how_to_get_back(root: Path) -> str:
    """Return the message after a refusal in `dvc exp run`, which leaves its change in params.yaml, else ""."""
    if not os.environ.get("DVC_EXP_NAME") or real_root(root) != root:
        return ""
    changed = _changed(_state(root) / "params.yaml", root / "params.yaml")
    if not changed:
        return "No output was removed. git diff params.yaml shows what the experiment changed there."
    return f"No output was removed. params.yaml keeps the change: to get back, set {changed} there."


def _changed(before: Path, now: Path) -> str:
    """The keys that differ, each with its earlier value; "" where that is not known, or too many differ."""
    from ruamel.yaml import YAML

    try:
        old, new = (flatten(YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8")))
                    for path in (before, now))
    except Exception:  # no file yet, or one that is no YAML
        return ""
    gone = [f"{key}: {json.dumps(value)}" for key, value in old.items() if key not in new or new[key] != value]
    return ", ".join(gone) if 0 < len(gone) <= 4 else ""


def main() -> int:
    """The command: 0 where all is well, 1 after a sentence."""
    try:
        root = find_root()
        end_with_dvc()
        if os.environ.get("DVC_STAGE"):
            keep_lock(root)
        try:
            check(root)
        except TesseraeError as error:
            back = how_to_get_back(root)
            print(f"\n{error}" + (f"\n{back}" if back else ""), file=sys.stderr)
            return 1
    except TesseraeError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        if not is_full(error):
            raise
        print("\nThe disk is full: free some space, then run again.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
