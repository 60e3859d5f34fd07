"""A set made shard by shard: by one process or two, in one run or with stops, the same set."""

import json
import os
import subprocess
import sys
from itertools import pairwise

import datasets
import numpy as np
import pyarrow.parquet as parquet
import pytest
from PIL import Image
from ruamel.yaml import YAML
from tests.plain import plain_values

from tesserae.data.decoding import decode
from tesserae.data.listing import list_source
from tesserae.data.prepare import CHECKSUM, SHARDS, aside_of, decode_shards, main, prepare
from tesserae.data.workers import MAX_ITEMS, pieces_of
from tesserae.errors import DiskFullError
from tesserae.params import PrepareParams

COUNT, SIZE = 90, 16


def params(**changes):
    values = {"source": "data", "image_size": SIZE, "fit": "cover", "holdout": 0.25, "min_side": 8,
              "max_rejected": 0.5}
    return PrepareParams(**values | changes)


def draw(path, number):
    """A picture that no other number gives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(path)


def files_of(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def data(tmp_path):
    """Two classes, masks, copies in the same shard and in others, broken files and a lost one."""
    folder, rows = tmp_path / "data", []
    for number in range(COUNT):
        name = f"{'ab'[number % 2]}/{number:02d}.png"
        draw(folder / name, number % 80 if number % 2 else number)
        if 40 <= number < 70 and not number % 2:
            (folder / name).write_bytes(b"broken")
        mask = folder / "masks" / f"{number:02d}.png"
        mask.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((9, 12), number % 3, np.uint8)).save(mask)
        rows.append({"file_name": name, "mask_file_name": f"masks/{number:02d}.png"})
    rows.append({"file_name": "a/lost.png", "mask_file_name": "masks/00.png"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def decoded(monkeypatch):
    """The pictures that were decoded, in shards of ten."""
    known = []

    def noting(source, *rest, **how):
        known.append(source)
        return decode(source, *rest, **how)

    monkeypatch.setattr("tesserae.data.prepare.decode", noting)
    monkeypatch.setattr("tesserae.data.prepare.SHARD", 10)
    return known


def stopped_at(number):
    def progress(done, _):
        if done == number:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("count", [1, 5, 1024, 1025, 3000, 1_281_167, 10**8])
@pytest.mark.parametrize(("least", "multiple"), [(512, 1), (1024, 48), (1024, 64)])
def test_pieces_hold_every_picture_once_in_whole_batches(count, least, multiple):
    found = pieces_of(count, least, multiple)
    assert found[0].start == 0
    assert found[-1].stop == count
    assert all(one.stop == next_.start for one, next_ in pairwise(found))
    assert all(len(piece) % multiple == 0 and len(piece) >= least for piece in found[:-1])
    assert max(map(len, found)) < MAX_ITEMS + multiple


def test_in_one_shard_or_many_the_set_and_the_report_are_the_same(data, tmp_path, monkeypatch):
    reports = []
    for least in (10, 512):
        monkeypatch.setattr("tesserae.data.prepare.SHARD", least)
        reports.append(prepare(data, tmp_path / str(least), params(), 0))
    many, one = reports
    assert len(many.rejected) == 16  # fifteen broken ones and the lost one, a whole shard among them
    assert many.duplicates == [(f"b/{number}.png", f"b/{number - 80:02d}.png") for number in range(81, COUNT, 2)]
    many.seconds = one.seconds = 0
    assert many == one
    assert files_of(tmp_path / "10") == files_of(tmp_path / "512")


def test_a_stop_loses_one_shard_and_the_next_run_makes_the_same_set(data, tmp_path, decoded):
    whole = prepare(data, tmp_path / "whole", params(), 0)
    assert len(decoded) == COUNT  # the lost one is not read
    decoded.clear()
    progress = []
    for number in (1, 15, 88):
        with pytest.raises(KeyboardInterrupt):
            prepare(data, tmp_path / "out", params(), 0, stopped_at(number))
    assert not (tmp_path / "out").exists()
    assert [item.name for item in aside_of(tmp_path / "out").iterdir()] == [SHARDS]
    before = len(decoded)
    report = prepare(data, tmp_path / "out", params(), 0, lambda *numbers: progress.append(numbers))
    assert len(decoded) - before == COUNT - 80
    assert progress == [(number + 1, COUNT + 1) for number in range(COUNT + 1)]
    report.seconds = whole.seconds = 0
    assert report == whole
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["data", "out", "whole"]


@pytest.mark.parametrize(("change", "again"), [
    ("nothing", 0), ("a picture", 1), ("a mask", 1), ("its time", 1), ("all classes", 9), ("one more at the end", 1),
    ("one more at the start", 10), ("the size", 9), ("the code", 9), ("a half of a file", 1),
    ("a byte of a file", 1), ("no checksum", 1)])
def test_shards_of_other_files_or_otherwise_decoded_are_not_taken_up(data, tmp_path, decoded, monkeypatch, change,
                                                                     again):
    with pytest.raises(KeyboardInterrupt):
        prepare(data, tmp_path / "out", params(), 0, stopped_at(COUNT + 1))
    decoded.clear()
    changes, picture, mask = {}, data / "a" / "00.png", data / "masks" / "00.png"
    kept = sorted((aside_of(tmp_path / "out") / SHARDS).glob("*.arrow"))
    assert len(kept) == 9
    if change == "a picture":
        draw(picture, 1000)
    elif change == "a mask":
        Image.fromarray(np.full((9, 12), 7, np.uint8)).save(mask)
    elif change == "its time":
        os.utime(picture, (1, 1))
    elif change == "all classes":
        (data / "metadata.jsonl").write_text((data / "metadata.jsonl").read_text().replace(
            '"a/00.png"', '"a/00.png", "label": "c"'))
    elif change.startswith("one more"):
        name = "z/1.png" if change.endswith("end") else "a/0.png"
        draw(data / name, 1000)
        with (data / "metadata.jsonl").open("a") as file:
            file.write(json.dumps({"file_name": name, "mask_file_name": "masks/00.png"}) + "\n")
    elif change == "the size":
        changes = {"image_size": 8}
    elif change == "the code":
        monkeypatch.setattr("tesserae.data.prepare.code_of", lambda *_: "another")
    elif change == "a half of a file":
        kept[0].write_bytes(kept[0].read_bytes()[:300])
    elif change == "a byte of a file":
        content = bytearray(kept[0].read_bytes())
        content[len(content) // 2] ^= 1
        kept[0].write_bytes(content)
    elif change == "no checksum":
        kept[0].with_suffix(CHECKSUM).unlink()
    report = prepare(data, tmp_path / "out", params(**changes), 0)
    assert -(-len(decoded) // 10) == again
    fresh = prepare(data, tmp_path / "fresh", params(**changes), 0)
    report.seconds = fresh.seconds = 0
    assert report == fresh
    assert files_of(tmp_path / "out") == files_of(tmp_path / "fresh")


def test_processes_decode_each_picture_once_and_the_stage_takes_their_shards_up(data, tmp_path, decoded):
    folder, progress = aside_of(tmp_path / "out") / SHARDS, []
    for rank in range(3):
        progress.clear()
        found = list(decode_shards(list_source(data), params(), folder, rank, 3, lambda *now: progress.append(now)))
        assert progress[-1][0] == progress[-1][1] == len(progress)
        assert len(found) in (3, 4)
    assert len(decoded) == len({*decoded}) == COUNT
    prepare(data, tmp_path / "out", params(), 0)
    assert len(decoded) == COUNT
    prepare(data, tmp_path / "alone", params(), 0)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "alone")


def test_tables_are_cut_as_folders_are(tmp_path, decoded):
    for split, start, count in (("train", 0, 27), ("test", 100, 14)):
        pictures = [Image.fromarray(np.random.default_rng(start + n).integers(0, 256, (9, 9, 3), dtype=np.uint8))
                    for n in range(count)]
        table = datasets.Dataset.from_dict({"image": pictures}, datasets.Features({"image": datasets.Image()}))
        (tmp_path / "data").mkdir(exist_ok=True)
        table.to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    assert list_source(tmp_path / "data").count == 41
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "data", tmp_path / "out", params(), 0, stopped_at(35))
    decoded.clear()
    report = prepare(tmp_path / "data", tmp_path / "out", params(), 0)
    assert len(decoded) == 11
    assert report.counts == {"train": 27, "validation": 14}


def test_a_picture_in_a_file_beside_its_table_is_decoded_again_when_it_changes(tmp_path, decoded):
    for number in range(3):
        draw(tmp_path / f"{number}.png", number)
    values = [{"bytes": None, "path": str(tmp_path / f"{number}.png")} for number in range(3)]
    features = datasets.Features({"image": datasets.Image()})
    table = datasets.Dataset.from_dict({"image": values}, features).data.table
    (tmp_path / "set").mkdir()
    parquet.write_table(table.replace_schema_metadata(features.arrow_schema.metadata), tmp_path / "set/a.parquet")

    def shards():
        decoded.clear()
        list(decode_shards(list_source(tmp_path / "set"), params(), tmp_path / SHARDS))
        return len(decoded)

    assert (shards(), shards()) == (3, 0)
    os.utime(tmp_path / "0.png", (1, 1))
    assert shards() == 3


def test_a_full_disk_is_a_sentence_and_whole_shards_are_kept(data, tmp_path, decoded, monkeypatch):
    real, calls = datasets.Dataset.map, []

    def full(*arguments, **options):
        calls.append(options)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return real(*arguments, **options)

    monkeypatch.setattr(datasets.Dataset, "map", full)
    with pytest.raises(DiskFullError, match=r"shards/0000.*could not be written: free some space, then run again"):
        prepare(data, tmp_path / "out", params(), 0)
    assert len(list((aside_of(tmp_path / "out") / SHARDS).glob("*.arrow"))) == 1
    decoded.clear()
    prepare(data, tmp_path / "out", params(), 0)
    assert len(decoded) == COUNT - 10


def test_two_processes_make_what_one_makes(tmp_path, pytestconfig):
    for number in range(1100):
        draw(tmp_path / "data" / f"{number:04d}.png", number)
    raw = plain_values()
    raw["prepare"] |= {"source": "data", "image_size": SIZE, "min_side": 8}
    raw["vqgan"]["image"]["disc_layers"] = 2
    YAML().dump(raw, tmp_path / "params.yaml")
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m",
           "tesserae.data.prepare"]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "process 1 of 2: 588 pictures in 2 shards, 0 files rejected; dvc repro prepare joins them." in done.stdout
    assert "process 2 of 2: 512 pictures in 1 shard, 0 files rejected" in done.stdout
    assert "588 of 588 files" in done.stdout
    made = {file.name: file.stat().st_mtime_ns for file in (tmp_path / ".prepared.partial/shards").iterdir()}
    again = subprocess.run([sys.executable, "-m", "tesserae.data.prepare"], cwd=tmp_path, capture_output=True,
                           text=True, check=True)
    assert "process 1 of 1: 1,100 pictures in 3 shards" in again.stdout
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / ".prepared.partial/shards").iterdir()} == made
    block = params(**{name: raw["prepare"][name] for name in ("fit", "holdout", "max_rejected")})
    prepare(tmp_path / "data", tmp_path / "prepared", block, 0)
    prepare(tmp_path / "data", tmp_path / "alone", block, 0)
    assert files_of(tmp_path / "prepared") == files_of(tmp_path / "alone")


def test_the_command_line_says_what_is_wrong_and_that_it_was_stopped(tmp_path, pytestconfig, monkeypatch):
    (tmp_path / "params.yaml").write_text((pytestconfig.rootpath / "tests/plain.yaml").read_text())
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"data does not exist: put pictures there"):
        main([])
    draw(tmp_path / "data" / "a.png", 0)

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("tesserae.data.prepare.decode_shards", stopped)
    with pytest.raises(SystemExit, match=r"^stopped: whole shards are kept"):
        main([])
