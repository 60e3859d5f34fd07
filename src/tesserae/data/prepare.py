"""Raw pictures -> the prepared set: checked, without duplicates, split by content, resized, stored.

    torchrun --nproc_per_node 4 -m tesserae.data.prepare --params params.yaml

`Dataset.map` decodes and resizes the pictures, shard by shard, and keeps each shard as an Arrow file beside the set,
so that a run that was stopped goes on from there. The command above shares the shards among processes, of several
machines, too, that see one disk; the stage `prepare` takes up the shards that are there, makes the others, and joins
them. A shard is known by the names, sizes and times of its files, by how they are decoded, and by the code.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL
from PIL import Image

from tesserae.data.decoding import Picture, decode
from tesserae.data.listing import Listing, check_columns, find_source, list_source
from tesserae.data.report import (
    Columns,
    MaskUse,
    PrepareError,
    PrepareReport,
    check_enough,
    count_pictures,
    way_up_note,
)
from tesserae.data.sources import are_scenes, write_made
from tesserae.data.splitting import SIDE, SPLIT, Split, near_copies, split_pictures
from tesserae.data.values import Ranges, extents_as_json, finished, is_mask
from tesserae.data.workers import cores, eta, in_order, pieces_of
from tesserae.errors import TesseraeError, writing
from tesserae.files import find_root
from tesserae.locks import held, run_of
from tesserae.params import PrepareParams, load_params
from tesserae.source_code import code_of

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset, Features

LEFT_OUT = "left_out.csv"  # in the prepared set
SHARDS = "shards"  # the folder of decoded pictures, beside the set until it is whole
SHARD = 512  # pictures of a shard at least, which is what a stop may lose
ROWS = 256  # pictures that are written or read together
CHECKSUM = ".blake2b"  # ends the name of the file beside a shard that holds its checksum
NAME = re.compile(rf"\d{{12}}-[0-9a-f]{{16}}\.(arrow|{CHECKSUM[1:]})")
ABOUT = ("path", "label", "given", "error", "sha", "width", "height")  # columns of a shard, of a few bytes a picture
GATHERED = ("look", "odd", "values")  # and those that are read picture by picture
Progress = Callable[[int, int], None]


def prepare(source: str | Path, out: str | Path, params: PrepareParams, seed: int, progress: Progress | None = None,
            columns: Mapping[str, str] | None = None) -> PrepareReport:
    """Make the prepared set `out` of a folder or a hub dataset; equal pictures give equal files.

    `out` becomes a `datasets.DatasetDict` on disk with the splits train and validation, and replaces what was
    there once it is whole. Columns: image, label (where there are classes), path, sha, and the paired ones.
    `out`/left_out.csv lists every file that is not in it, with the reason.
    `seed` salts the hash that splits. `progress(done, count)` is called as files are read. columns: those that VQGANs
    will read of the set. Shards that are decoded when the run stops stay beside `out` for the next one. While it
    works, no other process makes that set.
    Raises PrepareError, RawError or TesseraeError, in one sentence.
    """
    began = time.monotonic()
    out = Path(out)
    try:
        with held(out, "the stage prepare"), _beside(out) as aside, _without_progress_bars():
            listing = list_source(source, params.hub)
            check_columns(str(source), listing.columns, columns or {})
            gathered = _columns(listing, params)
            report = PrepareReport(columns=listing.columns, ignored=listing.ignored, notes=listing.notes)
            decoded = _joined(decode_shards(listing, params, aside / SHARDS, progress=progress))
            kept, copies = _kept(decoded, report)
            check_enough(str(source), kept, copies, params.max_rejected, report)
            notes = _gather(decoded.select(kept.index), gathered, aside / "looks", listing.columns)
            looks = np.memmap(aside / "looks", np.uint8, "r").reshape(-1, SIDE, SIDE, 3)
            split = split_pictures(kept["sha"], kept["label"], kept["given"], near_copies(looks), params.holdout,
                                   seed)
            count_pictures(kept, split, report)
            report.notes += notes + gathered.notes()
            report.ranges = gathered.metrics()
            _store(decoded, aside / "set", kept, split, report.classes, gathered.deep)
            gathered.write(aside / "set")
            _write_left_out(aside / "set" / LEFT_OUT, report)
            write_made(aside / "set", params, seed, are_scenes(Path(source)))
            _replace(aside / "set", out)
    except OSError as error:
        reason = getattr(error, "strerror", None) or error
        raise PrepareError(f"{out} cannot be written ({reason}): see to the disk and its rights.") from None
    report.seconds = time.monotonic() - began
    return report


def aside_of(out: Path) -> Path:
    """The folder beside a prepared set in which it is made."""
    return out.with_name(f".{out.name}.partial")


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """The folder in which a set is made; a run that does not end well leaves its whole shards there."""
    aside = aside_of(out)
    _tidy(aside)
    try:
        aside.mkdir(parents=True, exist_ok=True)
        yield aside
        shutil.rmtree(aside, ignore_errors=True)
    finally:
        _tidy(aside)


def _tidy(aside: Path) -> None:
    """Remove all but whole shards."""
    for place in [*aside.glob("*"), *(aside / SHARDS).glob("*")]:
        with suppress(OSError):  # what cannot be removed does no harm
            if place.parent.name == SHARDS:
                if not NAME.fullmatch(place.name):
                    place.unlink()
            elif place.name != SHARDS:
                shutil.rmtree(place) if place.is_dir() else place.unlink()
    for folder in (aside / SHARDS, aside):
        with suppress(OSError):  # it is not there, or not empty
            folder.rmdir()


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """While `datasets` works in small steps."""
    import datasets

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _columns(listing: Listing, params: PrepareParams) -> Columns:
    """The columns whose values are gathered. Raises PrepareError where a name cannot be used or is not there."""
    for name in sorted({*listing.columns} & {*_features([])}):
        raise PrepareError(f"The paired column {name!r} has a name that the prepared set uses itself: give it "
                           f"another in metadata.jsonl, such as {name}_map_file_name.")
    names = ["image", *listing.columns]
    for name in params.value_ranges:
        if name not in names:
            raise PrepareError(f"prepare.value_ranges names {name!r}, which the data lacks ({', '.join(names)} are "
                               "there): name one of these, or leave it out.")
    return Columns(names, params.value_ranges)


# ---- decoding, shard by shard ------------------------------------------------------------------------------


def decode_shards(listing: Listing, params: PrepareParams, folder: Path, rank: int = 0, world: int = 1,
                  progress: Progress | None = None) -> Iterator[Dataset]:
    """The shards of a listing that `folder` has, and those that it lacks as they are made, in order, on all cores.

    rank, world: makes every world-th shard from number `rank` on, so that `world` processes make each once. A shard
    has a row for each picture, with the columns of `_features`: all but path, label, given and error are null where
    it is rejected. Files of more than 8 bits keep their values until the range of their column is known.
    progress(done, total) counts files. Raises DiskFullError, TesseraeError.
    """
    rows = listing.dataset()
    shards = pieces_of(len(rows), SHARD)[rank::world]
    done, total = 0, sum(map(len, shards))

    def count_one(_: object = None) -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total)

    how = {"size": params.image_size, "fit": params.fit, "min_side": params.min_side}
    inputs = [how, listing.columns, PIL.__version__, code_of("tesserae.data.prepare"),
              [_signature(file["filename"]) for file in rows.cache_files]]
    features = _features(listing.columns)
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(), ThreadPoolExecutor(cores()) as pool:
        warnings.simplefilter("ignore")  # PIL's remarks on odd files
        for numbers in shards:
            shard, before = rows.select(numbers), done
            file = folder / f"{numbers.start:012d}-{_fingerprint(inputs, shard, listing.columns)}.arrow"
            function = partial(_decode_rows, pool=pool, how=how, columns=listing.columns, each=count_one)
            yield _map(shard, function, file, features)
            for _ in range(len(numbers) - (done - before)):
                count_one()


def _map(rows: Dataset, function: Callable[[dict[str, list]], dict[str, list]], file: Path,
         features: Features) -> Dataset:
    """`Dataset.map` into a file of that name, or what the file holds where it is there and has its checksum.

    The checksum is written last: where the power went in between, or a byte was damaged, the shard is made again.
    """
    known = _is_whole(file)
    if not known:
        for other in list(file.parent.glob(f"{file.name[:12]}-*")):  # of other pictures, or half of a shard
            other.unlink(missing_ok=True)
    with writing(file):
        shard = rows.map(function, batched=True, batch_size=ROWS, writer_batch_size=ROWS, features=features,
                         remove_columns=rows.column_names, cache_file_name=str(file), load_from_cache_file=known,
                         new_fingerprint=file.stem)
        if not known:
            file.with_suffix(CHECKSUM).write_text(_checksum(file), encoding="ascii")
    return shard


def _features(columns: list[str]) -> Features:
    """The columns of a shard; columns: the paired ones.

    given: the split that the data give. error: why it is rejected, or null. odd: JSON of `Picture.odd`. values: what
    `extents_as_json` returns. width, height: as it came.
    """
    import datasets

    text, number, picture = datasets.Value("string"), datasets.Value("int32"), datasets.Image()
    return datasets.Features({
        "image": picture, "label": text, "path": text, "sha": text, "given": text, "error": text, "odd": text,
        "values": text, "width": number, "height": number, "look": datasets.Value("binary"),
        **dict.fromkeys(columns, picture)})


def _decode_rows(rows: dict[str, list], pool: ThreadPoolExecutor, how: dict[str, Any], columns: list[str],
                 each: Callable[[], None]) -> dict[str, list]:
    """A batch of a listing's rows -> that of a shard; calls `each` for each row."""
    made: dict[str, list] = {name: [] for name in _features(columns)}
    one_by_one = [dict(zip(rows, values)) for values in zip(*rows.values())]
    for row in in_order(pool, partial(_decode_row, how=how, columns=columns), one_by_one, ROWS):
        for name, values in made.items():
            values.append(row.get(name))
        each()
    return made


def _decode_row(row: dict[str, Any], how: dict[str, Any], columns: list[str]) -> dict[str, Any]:
    about = {name: row[name] for name in ("path", "label", "given")}
    if row["error"] is not None:
        return {**about, "error": row["error"]}
    pairs = {name: _source(row[name]) for name in columns}
    found = decode(_source(row["image"]), pairs=pairs, **how)
    if not isinstance(found, Picture):
        return {**about, "error": str(found)}
    pictures = {"image": found.image, **found.pairs}
    return {**about, "sha": found.sha, "width": found.width, "height": found.height, "look": found.look,
            "odd": json.dumps(found.odd), "values": extents_as_json(found.found),
            **{name: {"bytes": content, "path": None} for name, content in pictures.items()}}


def _source(value: dict[str, Any] | None) -> bytes | str:
    """Where a picture lies, as `decode` takes it; a null is an empty file."""
    if value is None:
        return b""
    return value["path"] if value["bytes"] is None else value["bytes"]


def _fingerprint(inputs: list, shard: Dataset, columns: list[str]) -> str:
    """16 hex digits of all that a shard depends on, files by their size and time."""
    digest = hashlib.blake2b(json.dumps(inputs).encode(), digest_size=8)
    digest.update(json.dumps(shard.select_columns(["path", "label", "given", "error"]).to_dict()).encode())
    for column in ("image", *columns):
        for chunk in shard.data.column(column).chunks:
            apart = chunk.field("bytes").is_null().to_pylist()  # from the table, in files of their own
            for own, path in zip(apart, chunk.field("path").to_pylist()):
                digest.update(_signature(path).encode() if own and path else b"-")
    return digest.hexdigest()


def _signature(file: str) -> str:
    """A file's size and time: another one after it was written."""
    try:
        about = os.stat(file)
    except (OSError, ValueError):
        return "none"
    return f"{about.st_size}:{about.st_mtime_ns}"


def _is_whole(file: Path) -> bool:
    """Whether a shard is there with the bytes that were written."""
    try:
        return file.with_suffix(CHECKSUM).read_bytes() == _checksum(file).encode()
    except OSError:
        return False


def _checksum(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, hashlib.blake2b).hexdigest()


# ---- what is kept ------------------------------------------------------------------------------------------


def _joined(shards: Iterator[Dataset]) -> Dataset:
    import datasets

    found = list(shards)
    return datasets.concatenate_datasets(found) if found else datasets.Dataset.from_dict(
        {name: [] for name in _features([])}, _features([]))


def _kept(decoded: Dataset, report: PrepareReport) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The columns ABOUT of the pictures that are kept, and of their copies, by row; fills in the report's lists."""
    rows = decoded.select_columns(list(ABOUT)).to_pandas()
    for name in ("label", "given"):
        rows[name] = rows[name].astype(object).where(rows[name].notna(), None)
    rejected, usable = rows[rows["error"].notna()], rows[rows["error"].isna()]
    report.rejected += zip(rejected["path"], rejected["error"])
    kept, copies = usable.drop_duplicates("sha"), usable[usable.duplicated("sha")]
    report.duplicates += zip(copies["path"], copies["sha"].map(kept.set_index("sha")["path"]))
    return kept, copies


def _gather(kept: Dataset, gathered: Columns, looks: Path, columns: list[str]) -> list[str]:
    """Read what is kept picture by picture: values into `gathered`, looks into a file. Returns notes on the pairs."""
    masks = {name: MaskUse(name) for name in columns if is_mask(name)}
    odd: dict[tuple[str, str], list[str]] = {}
    rows = kept.select_columns(["path", "look", "odd", "values", *masks]).with_format("arrow")
    with looks.open("wb") as file:
        for batch in rows.iter(ROWS):
            for row in batch.to_pylist():
                file.write(row["look"])
                gathered.add(row["values"], row["path"])
                for name, mask in masks.items():
                    mask.add(Image.open(io.BytesIO(row[name]["bytes"])))
                for column_and_what in json.loads(row["odd"]).items():
                    odd.setdefault(column_and_what, []).append(row["path"])
    return [*(way_up_note(*which, paths) for which, paths in odd.items()),
            *(note for mask in masks.values() for note in mask.notes())]


# ---- writing -----------------------------------------------------------------------------------------------


def _store(decoded: Dataset, out: Path, kept: pd.DataFrame, split: Split, classes: list[str],
           deep: dict[str, Ranges]) -> None:
    """The decoded pictures that are kept -> a DatasetDict on disk whose files depend on its content alone."""
    import datasets

    if deep:
        decoded = _scaled(decoded, deep, out.with_name("scaled.arrow"))
    parts = [decoded.select_columns(["image"])]
    if classes:
        labels = kept["label"].map(classes.index).reindex(range(len(decoded)), fill_value=-1)  # -1: not kept
        features = datasets.Features({"label": datasets.ClassLabel(names=classes)})
        parts.append(datasets.Dataset.from_dict({"label": labels.to_numpy()}, features))
    pairs = [name for name in decoded.column_names if name not in _features([])]
    whole = datasets.concatenate_datasets([*parts, decoded.select_columns(["path", "sha", *pairs])], axis=1)
    chosen = {}
    for side, own in zip(SPLIT, (~split.held, split.held)):
        digest = hashlib.blake2b(digest_size=8)
        digest.update("".join(kept["sha"][own]).encode() + str(classes).encode())
        chosen[side] = whole.select(kept.index[own], new_fingerprint=digest.hexdigest())
    datasets.DatasetDict(chosen).save_to_disk(str(out))


def _scaled(whole: Dataset, deep: dict[str, Ranges], cache: Path) -> Dataset:
    """Values of more than 8 bits brought to the range of their column; all is written anew to the file `cache`."""
    import datasets

    def cell(value: dict[str, Any] | None, name: str, about: str | None) -> dict[str, Any] | None:
        black_white = value and deep[name].of(json.loads(about)[name][0])
        if not black_white:
            return value
        return {"bytes": finished(value["bytes"], black_white, name == "image"), "path": None}

    def brought(rows: dict[str, list]) -> dict[str, list]:
        return {name: list(pool.map(cell, rows[name], repeat(name), rows["values"])) for name in deep}

    undecoded = whole
    for name in deep:
        undecoded = undecoded.cast_column(name, datasets.Image(decode=False))
    with ThreadPoolExecutor(cores()) as pool:
        return undecoded.map(brought, batched=True, batch_size=ROWS, writer_batch_size=ROWS, features=whole.features,
                             cache_file_name=str(cache), new_fingerprint="scaled")


def _write_left_out(path: Path, report: PrepareReport) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "why"])
        writer.writerows(report.left_out())


def _replace(new: Path, out: Path) -> None:
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    new.rename(out)
    shutil.rmtree(old, ignore_errors=True)


# ---- the command -------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    """Make this process's shards; see the module's first lines."""
    parser = argparse.ArgumentParser("python -m tesserae.data.prepare",
                                     description="Decode and resize the raw pictures; the stage prepare joins them.")
    parser.add_argument("--params", default="params.yaml", help="parameters file (default: params.yaml)")
    options = parser.parse_args(arguments)
    try:
        print(_make_own_shards(options.params, int(os.environ.get("RANK", "0")),
                               int(os.environ.get("WORLD_SIZE", "1"))))
    except TesseraeError as error:
        raise SystemExit(str(error)) from None
    except KeyboardInterrupt:
        raise SystemExit("stopped: whole shards are kept, and the same command goes on from there.") from None


def _make_own_shards(params_file: str, rank: int, world: int) -> str:
    """Make every world-th shard from number `rank` on; what became of them, in a sentence."""
    root = find_root()
    params = load_params(root / params_file)
    out, run = root / "prepared", run_of(os.environ)
    with writing(aside_of(out)), held(out, "python -m tesserae.data.prepare", run), _without_progress_bars():
        if run is None:
            _tidy(aside_of(out))
        source = find_source(params.prepare.source, root)
        listing = list_source(source, params.prepare.hub)
        check_columns(str(source), listing.columns, {name: block.column for name, block in params.vqgan.items()})
        rows, rejected, shards = 0, 0, 0
        for shard in decode_shards(listing, params.prepare, aside_of(out) / SHARDS, rank, world,
                                   None if rank else eta("files")):
            errors = len(shard) - shard.data.column("error").null_count
            rows, rejected, shards = rows + len(shard) - errors, rejected + errors, shards + 1
    return (f"process {rank + 1} of {world}: {rows:,} pictures in {shards:,} shard{'s' * (shards != 1)}, "
            f"{rejected:,} files rejected; dvc repro prepare joins them.")


if __name__ == "__main__":
    main()
