"""Checks, before any work, what the parameters name outside of themselves: files, folders and data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tesserae.data.decoding import upright
from tesserae.data.listing import find_source
from tesserae.data.pictures import Pictures
from tesserae.data.sources import HELD_OUT, SCENES, are_scenes, check_prepared, layout_files, read_made
from tesserae.data.values import Rejected
from tesserae.data.views import make_view
from tesserae.errors import TesseraeError
from tesserae.params import Params

PREPARED = "prepared"


class NamedError(TesseraeError, ValueError):
    """The parameters name what is not there, or something else than they mean."""


def check_named(params: Params, root: Path, home: Path, prepared: bool = True) -> None:
    """Check what the parameters name.

    root: the folder that holds dvc.yaml; home: the same, but for a queued experiment, which runs in a copy, that of
    the repository itself, from which files are named.
    prepared: whether the prepared set, where there is one, is to be read, and so has to be that of these parameters.
    Raises TesseraeError, in one sentence that names the key.
    """
    if prepared:
        check_prepared(root / PREPARED, params)
    for name, sample in params.sample.items():
        if sample.condition_image:
            _check_picture(f"sample.{name}.condition_image", home / sample.condition_image)
    for name, highres in params.highres.items():
        key = f"highres.{name}.conditions_from"
        if highres.conditions_from == SCENES:
            condition = params.transformer[name].condition
            if set(condition) - {"coordinates"} and _scenes(params, root, home, prepared) is False:
                raise NamedError(f"{key} = '{SCENES}' renders landscapes as conditions, and the pictures of "
                                 f"prepare.source are others: set it to {HELD_OUT}, or to a folder of pictures.")
        elif highres.conditions_from != HELD_OUT:
            for file in layout_files(home / highres.conditions_from, key):
                _check_picture(key, file)


def check_views(params: Params, splits: Sequence[Pictures]) -> None:
    """Check that each VQGAN can read its column of a prepared set, all splits of it. Raises PicturesError."""
    for name, block in params.vqgan.items():
        make_view(block.view, block.column, *splits, ignore_index=block.ignore_index, key=f"vqgan.{name}.column")


def unmet(params: Params, classes: Sequence[str], held_out: int) -> list[str]:
    """Returns a sentence for each thing that the parameters ask for and a prepared set cannot give.

    Work goes on without these. classes: the set's; held_out: how many pictures its validation split has.
    """
    sentences = []
    for name, transformer in params.transformer.items():
        if "class" in transformer.condition and not classes:
            sentences.append(f"transformer.{name}.condition names class, and the pictures have no classes: it learns "
                             "without that condition; class folders would give one.")
    blocks = [("vqgan", params.vqgan), ("transformer", params.transformer)]
    wanted = {f"{kind}.{name}.eval_images": block.eval_images for kind, named in blocks
              for name, block in named.items()}
    short = [key for key, count in wanted.items() if count > held_out]
    if short:
        more = f" and {len(short) - 1} more ask" if len(short) > 1 else " asks"
        sentences.append(f"{short[0]} = {wanted[short[0]]}{more} for more pictures than the {held_out:,} that are "
                         f"held out, so all of these are measured; a prepare.holdout above "
                         f"{params.prepare.holdout:g} holds out more.")
    return sentences


def _check_picture(key: str, path: Path) -> None:
    try:
        upright(path.read_bytes())
    except FileNotFoundError:
        raise NamedError(f"{key} names {path}, which does not exist: name a picture, seen from the folder of "
                         "dvc.yaml.") from None
    except OSError as error:
        raise NamedError(f"{key} names {path}, which cannot be read ({error.strerror or error}): name a picture."
                         ) from None
    except Rejected as reason:
        raise NamedError(f"{key} names {path}, which is no picture that can be read ({reason}): name a JPEG, PNG or "
                         "WebP picture.") from None


def _scenes(params: Params, root: Path, home: Path, prepared: bool) -> bool | None:
    """Whether the data are the built-in scenes: as the prepared set remembers it, else by the raw folder."""
    made = read_made(root / PREPARED) if prepared else {}
    if "scenes" in made:
        return made["scenes"]
    source = find_source(params.prepare.source, home)
    if isinstance(source, Path):
        return are_scenes(source) if source.is_dir() else None
    return False
