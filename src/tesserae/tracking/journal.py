"""A run's journal: what a run records, on disk before MLflow hears of it.

    .tracking/outbox/<key>/journal.jsonl    a record a line; the first one says what the run is
    .tracking/outbox/<key>/files/<n>/       pictures and files, as they were when they were recorded
    .tracking/outbox/<key>/sent.json        how far the journal is sent, and the run's id in the store

Recording appends one line, which takes microseconds and survives the death of the process. A sender replays the lines
into MLflow and notes how far it is. What was sent when a sender died is sent again, which changes nothing.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FACTS = ("metrics", "params", "tags", "input", "end")  # records without files
FILES = ("files", "image", "model")
WORDS = {"metrics": ("metric", "metrics"), "params": ("parameter", "parameters"), "tags": ("tag", "tags"),
         "files": ("picture or file", "pictures and files")}


def outbox(home: Path) -> Path:
    """The folder of the journals that are not sent yet."""
    return home / ".tracking" / "outbox"


def new_key(name: str) -> str:
    """The name of a new run's journal; names sort by the time they were made."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{name}-{uuid.uuid4().hex[:6]}"


def journals(home: Path) -> list[Journal]:
    """All journals of a repository that are not sent yet, the oldest first."""
    return [Journal(path.parent) for path in sorted(outbox(home).glob("*/journal.jsonl"))]


class Journal:
    """One run's folder. Any number of processes may append to it, one at a time sends."""

    def __init__(self, folder: Path):
        self.folder, self.key = folder, folder.name
        self._lines = folder / "journal.jsonl"
        self._handle: int | None = None

    def begin(self, header: dict[str, Any]) -> bool:
        """Open the journal for records; whether it is new, and has `header` as its first line. Raises OSError."""
        (self.folder / "files").mkdir(parents=True, exist_ok=True)
        self._handle = os.open(self._lines, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        fcntl.flock(self._handle, fcntl.LOCK_SH)  # until this process closes it or dies
        new = not os.fstat(self._handle).st_size
        if new:
            self.append({"kind": "start", **header})
        return new

    def append(self, record: dict[str, Any]) -> None:
        """Write a record. Raises OSError."""
        line = f"\n{json.dumps(record)}\n".encode()  # the first one ends what a full disk left of the line before
        if os.write(self._handle, line) < len(line):  # one call: lines stay whole, whoever else writes
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def append_files(self, kind: str, content: dict[str, bytes | Path], **more: Any) -> None:
        """Keep files or folders, by their names, as they are now, and record them. Raises OSError."""
        place = self.folder / "files" / uuid.uuid4().hex[:12]
        for name, each in content.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            if isinstance(each, bytes):
                (place / name).write_bytes(each)
            elif each.is_dir():
                shutil.copytree(each, place / name, copy_function=_keep)
            else:
                _keep(each, place / name)
        self.append({"kind": kind, "at": f"files/{place.name}", **more})

    def close(self) -> None:
        """This process records nothing more."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def exists(self) -> bool:
        """Whether something is still to be sent."""
        return self._lines.is_file()

    def over(self) -> bool:
        """Whether nothing more is recorded: the run has ended, or all processes that recorded are dead."""
        try:
            with self._lines.open("rb+") as lines:
                lines.seek(max(0, self.size() - 100))
                if b'{"kind": "end"' in lines.read():
                    return True
                fcntl.flock(lines, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return True
        except BlockingIOError:
            return False
        return True

    def size(self) -> int:
        """Bytes that are written so far."""
        return self._lines.stat().st_size if self.exists() else 0

    def records(self, kinds: tuple[str, ...] = (*FACTS, *FILES), start: int = 0) -> Iterator[tuple[int, dict]]:
        """The records of these kinds after byte `start`: where each ends, and the record."""
        if not self.exists():
            return
        with self._lines.open("rb") as lines:
            end = lines.seek(start)
            for line in lines:
                if not line.endswith(b"\n"):
                    return  # it is being written
                end += len(line)
                try:
                    record = json.loads(line)
                except ValueError:
                    continue  # empty, or half of a line from a disk that was full
                if isinstance(record, dict) and record.get("kind") in kinds:
                    yield end, record

    @property
    def header(self) -> dict[str, Any]:
        """What the run is: name, uri, experiment, began (ms), group."""
        return next((record for _, record in self.records(("start",))), {})

    @property
    def sent(self) -> dict[str, Any]:
        """How far it is sent: bytes of `facts` and `files`, and `seen` of both; run_id, creating, problem."""
        try:
            return json.loads((self.folder / "sent.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def note(self, **changes: Any) -> None:
        """Change `sent`. Only for the process that sends."""
        aside = self.folder / "sent.json.part"
        aside.write_text(json.dumps(self.sent | changes), encoding="utf-8")
        os.replace(aside, self.folder / "sent.json")

    def waiting(self) -> Counter:
        """How much of each kind is not sent yet."""
        sent, found = self.sent, Counter()
        for kinds, mark in ((FACTS, "facts"), (FILES, "files")):
            for _, record in self.records(kinds, sent.get(mark, 0)):
                found[counted(record)] += amount(record)
        return found

    def refuse(self, record: dict[str, Any], reason: str) -> None:
        """Put a record that the store will never take aside, with its files."""
        place = self.folder.parents[1] / "refused" / self.key
        place.mkdir(parents=True, exist_ok=True)
        if record.get("at") and (self.folder / record["at"]).is_dir():
            shutil.copytree(self.folder / record["at"], place / Path(record["at"]).name, dirs_exist_ok=True)
        with (place / "records.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"reason": reason, **record}) + "\n")

    @contextmanager
    def sending(self) -> Iterator[bool]:
        """Whether this process may send now: one does at a time."""
        try:
            handle = os.open(self.folder / "sending", os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            yield False
            return
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield self.exists()
        except BlockingIOError:
            yield False
        finally:
            os.close(handle)

    def remove(self) -> None:
        """Everything is sent."""
        self._lines.unlink(missing_ok=True)  # first, so that nobody sees half a folder
        shutil.rmtree(self.folder, ignore_errors=True)


def amount(record: dict[str, Any]) -> int:
    """How many metrics, parameters or tags a record has; files are counted by the record."""
    return len(record.get("rows") or record.get("values") or "1")


def counted(record: dict[str, Any]) -> str:
    """The kind under which a record is counted."""
    return "files" if record["kind"] in FILES else record["kind"]


def in_words(amounts: Counter) -> str:
    """Counter(metrics=40, files=1) -> "40 metrics, 1 picture or file"."""
    known = [(amounts[kind], words) for kind, words in WORDS.items() if amounts[kind]]
    return ", ".join(f"{count:,} {words[count != 1]}" for count, words in known)


def _keep(source: str | Path, target: str | Path) -> None:
    """A copy; of weights, which may be large and are only ever replaced, a second name for the same bytes."""
    if str(source).endswith(".safetensors"):
        try:
            os.link(source, target)
            return
        except OSError:  # another file system, or one without links
            pass
    shutil.copyfile(source, target)
