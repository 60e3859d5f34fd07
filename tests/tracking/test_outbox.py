"""The outbox: whole records in order, whoever dies while writing or sending."""

import errno
import json
import os
import subprocess
import sys

import pytest

from tesserae.tracking import outbox
from tesserae.tracking.outbox import FACTS, FILES, Outbox

HEADER = {"name": "prepare", "uri": None, "began": 1}


@pytest.fixture
def box(tmp_path):
    return Outbox(tmp_path).new(HEADER)


def facts(box):
    return [record["n"] for _, _, record in box.records(FACTS)]


def test_records_come_back_in_order_from_the_mark_on(box):
    writer = box.writer()
    for number in range(5):
        writer.fact({"n": number})
    found = list(box.records(FACTS))
    assert [record["n"] for _, _, record in found] == list(range(5))
    box.mark(*found[2][:2])
    assert facts(box) == [3, 4]
    writer.fact({"n": 5})
    assert facts(box) == [3, 4, 5]
    assert not box.empty()
    box.mark(*list(box.records(FACTS))[-1][:2])
    assert box.empty()


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_line_cut_by_a_full_disk_costs_that_record_alone(box, monkeypatch, cut):
    writer = box.writer()
    writer.fact({"n": 0})
    write = os.write
    monkeypatch.setattr(outbox.os, "write", lambda handle, line: write(handle, line[:cut]))
    with pytest.raises(OSError, match="No space left") as caught:
        writer.fact({"n": 1, "long": "x" * 100})
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert facts(box) == [0]
    writer.fact({"n": 2})
    assert facts(box) == [0, 2]


def test_files_are_kept_as_they_were(box, tmp_path):
    writer = box.writer()
    path = tmp_path / "metrics.json"
    path.write_text("old")
    writer.files("here", path)
    path.write_text("new")
    writer.files(None, {"a.txt": b"a", "b.txt": b"b"})
    places = [box.folder / record["at"] for _, _, record in box.records(FILES)]
    assert (places[0] / "metrics.json").read_text() == "old"
    assert sorted(each.name for each in places[1].iterdir()) == ["a.txt", "b.txt"]
    assert box.waiting() == ({"files": 2}, 5)


def test_weights_are_kept_without_a_copy_and_outlive_their_replacement(box, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")
    writer = box.writer()
    writer.files("model", path)
    (tmp_path / "new").write_bytes(b"new")
    os.replace(tmp_path / "new", path)  # as models are written
    (record,) = [record for _, _, record in box.records(FILES)]
    kept = box.folder / record["at"] / "model.safetensors"
    assert kept.read_bytes() == b"old"


def test_a_folder_without_its_header_does_not_count(tmp_path):
    office = Outbox(tmp_path)
    assert office.boxes() == []
    box = office.new(HEADER)
    (office.folder / "half").mkdir()
    aside = office.folder / ".half"
    aside.mkdir()
    os.utime(aside, (1, 1))
    assert [each.key for each in office.boxes()] == [box.key]
    assert not aside.exists()
    assert office.box("half") is office.box("..") is office.box("") is None
    assert office.box(box.key).header == HEADER


def test_a_process_is_known_to_live_until_it_is_killed(tmp_path):
    box = Outbox(tmp_path).new(HEADER)
    code = (f"from pathlib import Path; from tesserae.tracking.outbox import Outbox\n"
            f"w = Outbox(Path({str(tmp_path)!r})).box({box.key!r}).writer(); w.fact({{'n': 1}})\n"
            "print(1, flush=True); input()")
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.readline()
    assert box.lives()
    child.kill()
    child.wait()
    assert not box.lives()
    assert facts(box) == [1], "what it recorded is there"
    assert not list(box.outbox.locks.glob("*.lives"))


def test_one_sends_at_a_time_and_nobody_once_it_is_gone(box):
    with box.sending() as first, box.sending() as second:
        assert (first, second) == (True, False)
        box.remove()
    with box.sending() as mine:
        assert not mine
    assert not box.folder.exists()
    box.remove()  # as another may have done


def test_what_is_refused_is_kept_aside(box):
    writer = box.writer()
    writer.files("figures", {"a.png": b"picture"})
    (record,) = [record for _, _, record in box.records(FILES)]
    for _ in range(2):  # a sender may die and do it again
        box.refuse(record, "too odd")
    place = box.outbox.refused / box.key
    assert [path.read_bytes() for path in place.rglob("a.png")] == [b"picture"]
    assert {json.loads(line)["reason"] for line in (place / "records.jsonl").read_text().splitlines()} == {"too odd"}
