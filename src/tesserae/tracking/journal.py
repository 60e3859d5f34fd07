"""A run's journal: what a run records, on disk before MLflow hears of it.

    .tracking/outbox/<key>/journal.jsonl    a record a line; the first one says what the run is
    .tracking/outbox/<key>/files/<n>/       pictures and files, as they were when they were recorded
    .tracking/outbox/<key>/sent.json        how far the journal is sent, and the run's id in the store
    .tracking/refused/<key>/                records that the store will never take

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SYNC = "python -m tesserae.tracking sync"  # sends what waits
FACTS = ("metrics", "params", "tags", "input", "end")  # records without files
FILES = ("files", "image", "model")


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
        self.refused = folder.parents[1] / "refused" / self.key
        self._lines = folder / "journal.jsonl"
        self._handle: int | None = None

    def begin(self, header: dict[str, Any]) -> bool:
        """Open the journal for records; whether it is new, and has `header` as its first line. Raises OSError."""
        (self.folder / "files").mkdir(parents=True, exist_ok=True)
        self._handle = os.open(self._lines, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        fcntl.flock(self._handle, fcntl.LOCK_SH)  # until this process closes it or dies
        new = not os.fstat(self._handle).st_size
        if new:
            self.append("start", **header)
        return new

    def append(self, kind: str, write: Callable[[Path], Any] | None = None, **content: Any) -> None:
        """Write a record, and its files, which `write` puts into the folder that it is given. Raises OSError."""
        if write:
            content["at"] = f"files/{uuid.uuid4().hex[:12]}"
            (self.folder / content["at"]).mkdir()
            write(self.folder / content["at"])
        record = json.dumps({"kind": kind, **content})
        line = f"\n{record}\n".encode()  # the first one ends what a full disk left of the line before
        if os.write(self._handle, line) < len(line):  # one call: lines stay whole, whoever else writes
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

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
                lines.seek(max(0, os.fstat(lines.fileno()).st_size - 100))
                if b'{"kind": "end"' in lines.read():
                    return True
                fcntl.flock(lines, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return True
        except BlockingIOError:
            return False
        return True

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
        """How far it is sent: bytes of `facts` and of `files`; ids in the store, of the run and of its `parent`."""
        try:
            return json.loads((self.folder / "sent.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def note(self, **changes: Any) -> None:
        """Change `sent`. Only for the process that sends."""
        aside = self.folder / "sent.json.part"
        aside.write_text(json.dumps(self.sent | changes), encoding="utf-8")
        os.replace(aside, self.folder / "sent.json")

    def refuse(self, record: dict[str, Any], reason: str) -> None:
        """Put a record that the store will never take aside, with its files."""
        self.refused.mkdir(parents=True, exist_ok=True)
        if "at" in record:
            shutil.copytree(self.folder / record["at"], self.refused / record["at"], dirs_exist_ok=True)
        with (self.refused / "records.jsonl").open("a", encoding="utf-8") as file:
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
