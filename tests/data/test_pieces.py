"""A set made piece by piece: by one process or two, at a stretch or with stops, the same set."""

import json
import os
import subprocess
import sys
from itertools import pairwise

import datasets
import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML
from tests.plain import plain_values

from tesserae.data import pieces, raw_tables
from tesserae.data.pieces import MOST, aside_of, make_pieces, pieces_of
from tesserae.data.prepare import prepare
from tesserae.data.raw import list_raw
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
    """Two classes, masks, copies in the same piece and in others, broken files, a lost one, a piece of them alone."""
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
    """The paths that were decoded, in pieces of ten."""
    known, real = [], pieces.decode

    def noting(entry, **how):
        known.append(entry.path)
        return real(entry, **how)

    monkeypatch.setattr(pieces, "decode", noting)
    monkeypatch.setattr(pieces, "LEAST", 10)
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
    assert max(map(len, found)) < MOST + multiple


def test_in_one_piece_or_many_the_set_and_the_report_are_the_same(data, tmp_path, monkeypatch):
    reports = []
    for least in (10, 512):
        monkeypatch.setattr(pieces, "LEAST", least)
        reports.append(prepare(data, tmp_path / str(least), params(), 0))
    many, one = reports
    assert len(many.rejected) == 16  # fifteen broken ones and the lost one, a whole piece among them
    assert many.duplicates == [(f"b/{number}.png", f"b/{number - 80:02d}.png") for number in range(81, COUNT, 2)]
    many.seconds = one.seconds = 0
    assert many == one
    assert files_of(tmp_path / "10") == files_of(tmp_path / "512")


def test_a_stop_loses_one_piece_and_the_next_run_makes_the_same_set(data, tmp_path, decoded):
    whole = prepare(data, tmp_path / "whole", params(), 0)
    every = decoded[:]
    decoded.clear()
    seen = []
    for number in (1, 15, 88):
        with pytest.raises(KeyboardInterrupt):
            prepare(data, tmp_path / "out", params(), 0, stopped_at(number))
    assert not (tmp_path / "out").exists()
    assert [item.name for item in aside_of(tmp_path / "out").iterdir()] == ["pieces"]
    before = len(decoded)
    report = prepare(data, tmp_path / "out", params(), 0, lambda *told: seen.append(told))
    assert decoded[before:] == every[80:]
    assert seen == [(number + 1, len(every)) for number in range(len(every))]
    report.seconds = whole.seconds = 0
    assert report == whole
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["data", "out", "whole"]


@pytest.mark.parametrize(("change", "again"), [
    ("nothing", 1), ("a picture", 2), ("a mask", 2), ("its time", 2), ("all classes", 10), ("one more at the end", 1),
    ("one more at the start", 10), ("the size", 10), ("the code", 10), ("a half of a file", 2), ("a byte", 2),
    ("what is said of it", 2)])
def test_pieces_of_other_files_or_otherwise_decoded_are_not_taken_up(data, tmp_path, decoded, monkeypatch, change,
                                                                     again):
    with pytest.raises(KeyboardInterrupt):
        prepare(data, tmp_path / "out", params(), 0, stopped_at(COUNT + 1))
    decoded.clear()
    changes, picture, mask = {}, data / "a" / "00.png", data / "masks" / "00.png"
    kept = sorted((aside_of(tmp_path / "out") / "pieces").iterdir())
    assert len(kept) == 17  # eight tables, and what is said of nine pieces: of one all files are broken
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
        monkeypatch.setattr(pieces, "code_of", lambda *_: "another")
    elif change == "a half of a file":
        kept[0].write_bytes(kept[0].read_bytes()[:300])
    elif change == "a byte":
        content = bytearray(kept[0].read_bytes())
        content[len(content) // 8] ^= 255
        kept[0].write_bytes(content)
    elif change == "what is said of it":
        kept[1].write_text("[]")
    report = prepare(data, tmp_path / "out", params(**changes), 0)
    assert -(-len(decoded) // 10) == again
    fresh = prepare(data, tmp_path / "fresh", params(**changes), 0)
    report.seconds = fresh.seconds = 0
    assert report == fresh
    assert files_of(tmp_path / "out") == files_of(tmp_path / "fresh")


def test_shares_are_disjoint_and_the_stage_takes_them_up(data, tmp_path, decoded):
    folder, told = aside_of(tmp_path / "out") / "pieces", []
    for number in range(3):
        told.clear()
        found = list(make_pieces(list_raw(data), params(), folder, (number, 3), lambda *now: told.append(now)))
        assert told[-1][0] == told[-1][1] == len(told)
        assert len(found) in (3, 4)
    assert len(decoded) == len({*decoded}) == COUNT + 1
    prepare(data, tmp_path / "out", params(), 0)
    assert len(decoded) == COUNT + 1
    prepare(data, tmp_path / "alone", params(), 0)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "alone")


def test_tables_are_cut_as_folders_are(tmp_path, decoded):
    for split, start, count in (("train", 0, 27), ("test", 100, 14)):
        pictures = [Image.fromarray(np.random.default_rng(start + n).integers(0, 256, (9, 9, 3), dtype=np.uint8))
                    for n in range(count)]
        table = datasets.Dataset.from_dict({"image": pictures}, datasets.Features({"image": datasets.Image()}))
        (tmp_path / "data").mkdir(exist_ok=True)
        table.to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    raw = list_raw(tmp_path / "data")
    assert raw.length == raw.count == 41
    every = [entry.path for entry in raw.entries(range(41))]
    assert len({*every}) == 41
    assert [entry.path for entry in raw.entries(range(20, 35))] == every[20:35]
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "data", tmp_path / "out", params(), 0, stopped_at(35))
    decoded.clear()
    report = prepare(tmp_path / "data", tmp_path / "out", params(), 0)
    assert decoded == every[30:]
    assert report.counts == {"train": 27, "validation": 14}


def test_a_picture_beside_its_table_is_looked_at(tmp_path):
    draw(tmp_path / "a.png", 0)
    value = {"bytes": None, "path": str(tmp_path / "a.png")}
    before = raw_tables._mark(value)
    os.utime(tmp_path / "a.png", (1, 1))
    assert raw_tables._mark(value) != before
    assert raw_tables._mark({"bytes": b"own", "path": None}) == raw_tables._mark(None) == ""


def test_a_full_disk_is_told_and_whole_pieces_are_kept(data, tmp_path, decoded, monkeypatch):
    real, calls = pieces._flush, []

    def full(file):
        calls.append(file)
        if len(calls) == 4:  # a table and what is said of it, each
            raise OSError(28, "No space left on device")
        real(file)

    monkeypatch.setattr(pieces, "_flush", full)
    with pytest.raises(DiskFullError, match=r"pieces/0000.*could not be written: free some space, then run again"):
        prepare(data, tmp_path / "out", params(), 0)
    assert len(list((aside_of(tmp_path / "out") / "pieces").glob("*.json"))) == 1
    decoded.clear()
    monkeypatch.setattr(pieces, "_flush", real)
    prepare(data, tmp_path / "out", params(), 0)
    assert len(decoded) == COUNT + 1 - 10


def test_two_processes_make_what_one_makes(tmp_path, pytestconfig):
    for number in range(1100):
        draw(tmp_path / "data" / f"{number:04d}.png", number)
    raw = plain_values()
    raw["prepare"] |= {"source": "data", "image_size": SIZE, "min_side": 8}
    raw["vqgan"]["image"]["disc_layers"] = 2
    YAML().dump(raw, tmp_path / "params.yaml")
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m",
           "tesserae.data.pieces"]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "process 1 of 2: 588 pictures in 2 pieces, 0 files rejected; dvc repro prepare joins them." in done.stdout
    assert "process 2 of 2: 512 pictures in 1 piece, 0 files rejected" in done.stdout
    assert "588 of 588 files" in done.stdout
    made = {file.name: file.stat().st_mtime_ns for file in (tmp_path / ".prepared.partial/pieces").iterdir()}
    again = subprocess.run([sys.executable, "-m", "tesserae.data.pieces"], cwd=tmp_path, capture_output=True,
                           text=True, check=True)
    assert "process 1 of 1: 1,100 pictures in 3 pieces" in again.stdout
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / ".prepared.partial/pieces").iterdir()} == made
    block = params(**{name: raw["prepare"][name] for name in ("fit", "holdout", "max_rejected")})
    prepare(tmp_path / "data", tmp_path / "prepared", block, 0)
    prepare(tmp_path / "data", tmp_path / "alone", block, 0)
    assert files_of(tmp_path / "prepared") == files_of(tmp_path / "alone")


def test_the_command_line_says_what_is_wrong_and_that_it_was_stopped(tmp_path, pytestconfig, monkeypatch):
    (tmp_path / "params.yaml").write_text((pytestconfig.rootpath / "tests/plain.yaml").read_text())
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pieces"])
    with pytest.raises(SystemExit, match=r"data does not exist: put pictures there"):
        pieces.main()
    draw(tmp_path / "data" / "a.png", 0)

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pieces, "make_pieces", stopped)
    with pytest.raises(SystemExit, match=r"^stopped: what is whole is kept"):
        pieces.main()
