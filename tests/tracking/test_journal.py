"""The journal: whole records in order, whoever dies while writing or sending."""

import errno
import json
import os
import shutil
import subprocess
import sys

import pytest

from tesserae.tracking import journal as module
from tesserae.tracking.journal import FILES, Journal, journals, outbox


@pytest.fixture
def journal(tmp_path):
    made = Journal(outbox(tmp_path) / "key")
    assert made.begin({"name": "prepare"})
    return made


def numbers(journal, start=0):
    return [record["n"] for _, record in journal.records(("metrics",), start)]


def test_records_come_back_in_order_from_a_mark_on(journal):
    for number in range(5):
        journal.append("metrics", n=number)
    ends = [end for end, _ in journal.records(("metrics",))]
    assert numbers(journal) == list(range(5))
    assert numbers(journal, ends[2]) == [3, 4]
    assert journal.header["name"] == "prepare"


def test_a_second_process_joins(journal):
    other = Journal(journal.folder)
    assert not other.begin({"name": "another"})
    other.append("metrics", n=7)
    assert (journal.header["name"], numbers(journal)) == ("prepare", [7])


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_line_cut_by_a_full_disk_costs_that_record_alone(journal, monkeypatch, cut):
    journal.append("metrics", n=0)
    write = os.write
    monkeypatch.setattr(module.os, "write", lambda handle, line: write(handle, line[:cut]))
    with pytest.raises(OSError, match="No space left") as caught:
        journal.append("metrics", n=1, long="x" * 100)
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert numbers(journal) == [0]
    journal.append("metrics", n=2)
    assert numbers(journal) == [0, 2]


def test_files_are_kept_as_they_were(journal, tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text("old")
    journal.append("files", lambda folder: shutil.copy(path, folder), to="here")
    path.write_text("new")
    ((_, record),) = journal.records(FILES)
    assert (journal.folder / record["at"] / "metrics.json").read_text() == "old"
    assert record["to"] == "here"


def test_a_process_records_until_it_is_killed(tmp_path):
    journal = Journal(outbox(tmp_path) / "key")
    code = (f"from pathlib import Path; from tesserae.tracking.journal import Journal\n"
            f"j = Journal(Path({str(journal.folder)!r})); j.begin({{}}); j.append('metrics', n=1)\n"
            "print(1, flush=True); input()")
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.readline()
    assert not journal.over()
    child.kill()
    child.wait()
    assert journal.over()
    assert numbers(journal) == [1], "what it recorded is there"


def test_a_run_is_over_when_it_ends_whoever_else_has_it_open(journal):
    assert not journal.over()
    journal.append("end", status="FINISHED", time=1)
    assert journal.over()


def test_one_sends_at_a_time_and_nobody_once_it_is_gone(journal, tmp_path):
    with journal.sending() as first, journal.sending() as second:
        assert (first, second) == (True, False)
        assert [each.key for each in journals(tmp_path)] == ["key"]
        journal.remove()
    with journal.sending() as mine:
        assert not mine
    assert journals(tmp_path) == []
    assert journal.over()
    journal.remove()  # as another may have done


def test_what_is_refused_is_kept_aside(journal, tmp_path):
    journal.append("files", lambda folder: (folder / "a.png").write_bytes(b"picture"), to="figures")
    (record,) = [record for _, record in journal.records(FILES)]
    for _ in range(2):  # a sender may die and do it again
        journal.refuse(record, "too odd")
    place = tmp_path / ".tracking/refused/key"
    assert [path.read_bytes() for path in place.rglob("a.png")] == [b"picture"]
    assert {json.loads(line)["reason"] for line in (place / "records.jsonl").read_text().splitlines()} == {"too odd"}
