"""A stage opened: where it is, what its parameters are, which run it belongs to, where its report goes."""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tesserae import tracking
from tesserae.errors import TesseraeError, command, see_writable
from tesserae.files import find_root, write_atomically
from tesserae.named import check_named
from tesserae.params import Params, load_params, settings

KINDS = ("prepare", "vqgan", "codebook", "transformer", "sample", "highres")
DRAWN = ("sample", "highres")  # of a transformer
MEASURING = ("vqgan", "sample", "highres")  # these compare sets of pictures
MODELS = ("vqgan", "transformer")  # these leave models/<stage>
COUNTED = ("num_eval_samples", "per_size")  # how many pictures are sampled, which effort multiplies
FEWEST = 8  # pictures that a small effort leaves
FIGURE_BYTES = 300_000  # figures are kept in git, so they stay small


class StageError(TesseraeError, ValueError):
    """The stage that was asked for does not exist here."""


class Stage:
    """One execution of one stage, for a notebook or a trainer.

    root: the folder that holds dvc.yaml; under `dvc exp run --queue` a temporary copy.
    home: the repository itself; checkpoints and the MLflow store lie there.
    params: the whole of params.yaml; block: this stage's part of it. run: its MLflow run.
    inception_weights: the file that evaluation.inception_weights names, None for "".
    """

    def __init__(self, root: Path, kind: str, target: str | None, params: Params):
        self.root, self.kind, self.target, self.params = root, kind, target, params
        self.home = tracking.real_root(root)
        self.name = stage_name(kind, target)
        self.block = with_effort(stage_block(params, kind, target), params.effort)
        see_writable(*written(root, kind, target))
        self.inception_weights = inception_weights(params, self.root, self.home)  # raises at once where it is missing
        check_named(params, root, self.home, prepared=kind != "prepare")
        self._metrics: dict[str, Any] = {}
        self._joined = bool(os.environ.get(tracking.RUN_VARIABLE))
        first = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0
        self.run = tracking.start_run(root, self.name, lineage(params, kind, target)) if first else (
            tracking.silent_run())

    @classmethod
    def open(cls, kind: str, target: str | None = None, params_file: str | Path = "params.yaml",
             overrides: Mapping[str, Any] | str | None = None) -> Stage:
        """Find the root from the working folder, load the parameters, start or join the MLflow run.

        kind: one of KINDS, "vqgan" for instance; target: the block's name, for instance "image".
        `params_file` is relative to the root; overrides: values that replace the file's, see `load_params`. Raises
        ParamsError, RootError, StageError.
        """
        root = find_root()
        params_file = Path(params_file)
        if not params_file.is_absolute():
            params_file = root / params_file
        return cls(root, kind, target, load_params(params_file, overrides))

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, kind, error, trace) -> None:
        self.close("FINISHED" if kind is None else "FAILED" if issubclass(kind, Exception) else "KILLED")

    def path(self, *parts: str) -> Path:
        """A path below the root; its folder is made."""
        path = self.root.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def reports(self) -> Path:
        """reports/<stage>, made where it is missing."""
        folder = self.root / "reports" / self.name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def features(self) -> Path:
        """The folder of the reference pictures' features, which stages share. Outside DVC's outputs."""
        return self.home / ".features"

    @property
    def checkpoints(self) -> Path:
        """The folder of all checkpoints. Outside DVC's outputs, so that an interrupted stage goes on."""
        return self.home / "checkpoints"

    def figure(self, figure, name: str):
        """Save a matplotlib figure or PIL image as reports/<stage>/<name>.png, below 300 KB and in true colours.

        Returns what a notebook shows: the same picture at its full size and in all its colours, drawn once.
        """
        from IPython.display import Image as Shown

        from tesserae.figures.files import png_of, small_png

        path = self.reports / f"{name}.png"
        content = png_of(figure)
        write_atomically(path, small_png(content, FIGURE_BYTES))
        self.run.artifact(path, "figures")
        _keep_from_showing_twice(figure)
        return Shown(data=content, format="png")

    def metrics(self, values: Mapping[str, Any], protocol: Sequence[Mapping[str, Any]] = ()) -> None:
        """Join numbers to reports/<stage>/metrics.json: sorted, 6 significant digits, null if not finite.

        protocol: records {"of": the number's name, ...} of how numbers were measured, for the list `protocol` of that
        file, which the tables of DVC leave out. MLflow gets the numbers as the last point of each curve: at `steps`,
        where that is among the stage's numbers.
        """
        self._metrics |= values
        if protocol:
            known = {record["of"]: dict(record) for record in (*self._metrics.get("protocol", ()), *protocol)}
            self._metrics["protocol"] = [known[name] for name in sorted(known)]
        text = json.dumps(_rounded(self._metrics), indent=2, sort_keys=True) + "\n"
        write_atomically(self.reports / "metrics.json", text.encode())
        self.run.metrics(values, self._metrics.get("steps"), section="report")

    def _models(self) -> list[str]:
        """The model that this stage makes, then the VQGANs that it needs beside it."""
        if self.kind == "vqgan":
            return [self.name]
        return [self.name, *(f"vqgan-{name}" for name in dict.fromkeys((self.block.vqgan, *self.block.codes_read)))]

    def close(self, status: str = "FINISHED") -> None:
        """Record the model where the stage makes one; end the run where this opening started it; free memory."""
        if status == "FINISHED" and self.kind in MODELS and (self.root / "models" / self.name).is_dir():
            self.run.model(*(self.root / "models" / name for name in self._models()))
        if not self._joined:
            self.run.finish(status)


@contextmanager
def stage_of_command(kind: str, target: str, description: str) -> Iterator[Stage]:
    """The stage that a command line asks for with --params, --set and --target, whose default is `target`.

    Around the command's work: a TesseraeError ends it with the sentence alone, see `errors.command`.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--params", default="params.yaml", help="parameters file (default: params.yaml)")
    parser.add_argument("--target", default=target, help=f"the block under {kind}: in it (default: {target})")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help=f"a value in place of the file's, such as {kind}.{target}.batch_size=4; may be repeated")
    arguments = parser.parse_args()
    with command(), Stage.open(kind, arguments.target, arguments.params, settings(arguments.set)) as stage:
        yield stage


def inception_weights(params: Params, *folders: Path) -> Path | None:
    """The file that evaluation.inception_weights names, from the first of these folders that has it; None for "".

    Raises StageError.
    """
    named = params.evaluation.inception_weights
    if not named:
        return None
    places = [folder / Path(named).expanduser() for folder in folders]
    for place in places:
        if place.is_file():
            return place
    raise StageError(f"evaluation.inception_weights names {named}, and {places[0]} is no file: put the weights "
                     "there, or set the key to \"\" to compare by what is in torch's cache, or else by VGG16.")


def written(root: Path, kind: str, target: str | None) -> list[Path]:
    """The folders that a stage writes, so that one that cannot be written is named before any work."""
    name = stage_name(kind, target)
    results = {"prepare": "prepared", "vqgan": f"models/{name}", "codebook": f"codes/{target}",
               "transformer": f"models/{name}", "sample": f"samples/{target}", "highres": f"samples/{name}"}
    checkpoints = [tracking.real_root(root) / "checkpoints"] if kind in MODELS else []
    return [*checkpoints, root / results[kind], root / "reports" / name]


def stage_name(kind: str, target: str | None) -> str:
    """("vqgan", "image") -> "vqgan-image": the name of folders and runs."""
    return kind if target is None else f"{kind}-{target}"


def stage_block(params: Params, kind: str, target: str | None) -> Any:
    """The part of the parameters that is this stage's own. Raises StageError."""
    if kind not in KINDS:
        raise StageError(f"{kind} is not a stage: take one of {', '.join(KINDS)}.")
    block = getattr(params, kind)
    if isinstance(block, dict):
        names = ", ".join(block) or "none"
        if target is None:
            raise StageError(f"{kind} has targets: name one of {names}.")
        if target not in block:
            raise StageError(f"{kind}.{target} is not in params.yaml: add it, or take one of {names}.")
        return block[target]
    if target is not None:
        raise StageError(f"{kind} has no targets: leave {target!r} out.")
    return block


def with_effort(block: Any, effort: float) -> Any:
    """A sampling stage's block with `effort` times the pictures that its numbers come from; any other as it is.

    Trainings lengthen their own, see `training.loop`.
    """
    counts = {name: getattr(block, name) for name in COUNTED if hasattr(block, name)}
    return block.model_copy(update={name: max(min(FEWEST, count), round(count * effort))
                                    for name, count in counts.items()})


def lineage(params: Params, kind: str, target: str | None) -> dict[str, Any]:
    """The parameters that a stage's result depends on: its own, and those of the stages before it."""
    stage_block(params, kind, target)
    chain: list[tuple[str, str | None]] = [(kind, target)]
    if kind in DRAWN:
        chain.append(("transformer", target))
    if kind in (*DRAWN, "transformer"):
        block = params.transformer[target]
        chain += [("vqgan", name) for name in dict.fromkeys((block.vqgan, *block.codes_read))]
    if kind == "codebook":
        chain.append(("vqgan", target))
    if kind != "prepare":
        chain.append(("prepare", None))
    everywhere = ("size", "seed", "precision", "compile", "effort")
    found: dict[str, Any] = {name: getattr(params, name) for name in everywhere}
    for one, name in reversed(chain):
        block = stage_block(params, one, name).model_dump()
        found[one] = block if name is None else found.get(one, {}) | {name: block}
    if kind in MEASURING:
        found["evaluation"] = params.evaluation.model_dump()
    return found


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _rounded(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(each) for each in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def _keep_from_showing_twice(figure) -> None:
    """A notebook shows the returned figure; one that pyplot still holds would be shown again."""
    import sys

    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None and hasattr(figure, "savefig"):
        pyplot.close(figure)
