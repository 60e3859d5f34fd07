"""What was recorded and is not sent yet, on disk: a folder a run, below .tracking/outbox at the repository's root.

    run.json              what the run is: its stage, its store, when it began
    <writer>.facts        a line a record: metrics, parameters, tags
    <writer>.files        a line a record: which folder of files/ goes where
    files/<n>/            pictures and files
    end.json              how the run ended, and when
    sent.json             how far each of those lists is sent, and the run's id in the store

Recording appends one line, which costs microseconds and survives the death of the process. Whoever sends moves the
marks of sent.json afterwards, so what was sent when the sender died is sent once more: every record may be.
Facts and files are apart, so that a store which takes no files still gets the numbers.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

FACTS, FILES = ".facts", ".files"
WORDS = {"metrics": ("metric", "metrics"), "params": ("parameter", "parameters"), "tags": ("tag", "tags"),
         "files": ("picture or file", "pictures and files")}


class Outbox:
    """All runs of a repository that still have something to send. `home` is the repository's real root."""

    def __init__(self, home: Path):
        self.folder = home / ".tracking" / "outbox"
        self.locks = home / ".tracking" / "locks"
        self.refused = home / ".tracking" / "refused"

    def new(self, header: dict[str, Any]) -> Box:
        """A folder for a new run; `header` has its `name`, `uri` (None: the default store) and `began` (ms)."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.locks.mkdir(exist_ok=True)
        key = f"{time.strftime('%Y%m%d-%H%M%S')}-{header['name']}-{uuid.uuid4().hex[:6]}"
        aside = self.folder / f".{key}"
        (aside / "files").mkdir(parents=True)
        write_json(aside / "run.json", header)
        aside.rename(self.folder / key)  # a folder is there with its header, or not at all
        return Box(self, key)

    def box(self, key: str) -> Box | None:
        """The run of that key, where it still has a folder."""
        safe = key and not key.startswith(".") and os.sep not in key
        return Box(self, key) if safe and (self.folder / key / "run.json").is_file() else None

    def boxes(self) -> list[Box]:
        """All of them, the oldest first; what a crash left of a folder that was never whole goes."""
        if not self.folder.is_dir():
            return []
        for rest in self.folder.glob(".*"):
            with suppress(FileNotFoundError):  # another process may have removed it by now
                if time.time() - rest.stat().st_mtime > 60:
                    shutil.rmtree(rest, ignore_errors=True)
        found = (self.box(path.name) for path in sorted(self.folder.iterdir()))
        return [box for box in found if box is not None]


class Box:
    """One run's folder."""

    def __init__(self, outbox: Outbox, key: str):
        self.outbox, self.key = outbox, key
        self.folder = outbox.folder / key
        self._run_id: str | None = None

    @property
    def header(self) -> dict[str, Any]:
        """What `Outbox.new` was given."""
        return _read_json(self.folder / "run.json")

    @property
    def sent(self) -> dict[str, Any]:
        """What is known of it in the store: run_id, creating, ended; `marks`: bytes of each list that are sent."""
        return {"marks": {}} | _read_json(self.folder / "sent.json")

    @property
    def run_id(self) -> str | None:
        """The run's id in the store, once it is known."""
        self._run_id = self._run_id or self.sent.get("run_id") or self.header.get("run_id")
        return self._run_id  # also when the folder is gone

    def note(self, **changes: Any) -> None:
        """Change `sent`. Only for who holds `sending`."""
        write_json(self.folder / "sent.json", self.sent | changes)

    def records(self, kind: str) -> Iterator[tuple[str, int, dict[str, Any]]]:
        """What is not sent yet of FACTS or FILES, in order: the list's name, where the record ends, the record."""
        marks = self.sent["marks"]
        for path in sorted(self.folder.glob(f"*{kind}")):
            with path.open("rb") as lines:
                end = lines.seek(marks.get(path.name, 0))
                for line in lines:
                    if not line.endswith(b"\n"):
                        break  # still being written
                    end += len(line)
                    try:
                        record = json.loads(line)
                    except ValueError:
                        continue  # half of a line, from a disk that was full
                    if isinstance(record, dict):
                        yield path.name, end, record

    def mark(self, name: str, end: int) -> None:
        """That list is sent up to there."""
        self.note(marks=self.sent["marks"] | {name: end})

    def forget(self, record: dict[str, Any]) -> None:
        """Remove the files of a record that is sent."""
        shutil.rmtree(self.folder / record["at"], ignore_errors=True)

    @property
    def ending(self) -> dict[str, Any]:
        """{"status", "at" in ms} once the run is over, else {}."""
        return _read_json(self.folder / "end.json")

    def end(self, status: str) -> None:
        """The run is over. Raises OSError."""
        write_json(self.folder / "end.json", {"status": status, "at": int(time.time() * 1000)})

    @property
    def unusable(self) -> bool:
        """Whether it was meant for an address that is none, and so goes to whatever store there is."""
        return (self.folder / "unusable").exists()

    def make_unusable(self) -> None:
        """See `unusable`. Raises OSError."""
        (self.folder / "unusable").touch()

    def empty(self) -> bool:
        """Whether all records are sent."""
        return not any(True for kind in (FACTS, FILES) for _ in self.records(kind))

    def refuse(self, record: dict[str, Any], reason: str) -> None:
        """Put a record aside that the store will never take, with its files."""
        place = self.outbox.refused / self.key
        place.mkdir(parents=True, exist_ok=True)
        if record.get("at"):
            target = place / Path(record["at"]).name
            shutil.rmtree(target, ignore_errors=True)
            if (self.folder / record["at"]).is_dir():
                shutil.copytree(self.folder / record["at"], target)
        with (place / "records.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"reason": reason, **record}) + "\n")

    def waiting(self) -> tuple[Counter, int]:
        """What waits: how much of each kind, in the units of `amount`, and the bytes of its files."""
        files = [record for _, _, record in self.records(FILES) if (self.folder / record["at"]).is_dir()]
        found: Counter = Counter()
        for record in (*(record for _, _, record in self.records(FACTS)), *files):
            found[record["kind"]] += amount(record)
        content = sum(path.stat().st_size for record in files
                      for path in (self.folder / record["at"]).rglob("*") if path.is_file())
        return found, content

    def writer(self) -> Writer:
        """For the process that records. Raises OSError."""
        return Writer(self)

    @contextmanager
    def sending(self) -> Iterator[bool]:
        """Whether this process may send now: one does at a time."""
        path = self.outbox.locks / f"{self.key}.sends"
        self.outbox.locks.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield (self.folder / "run.json").is_file()
        finally:
            if not self.folder.exists():
                path.unlink(missing_ok=True)
            lock.release()

    def lives(self) -> bool:
        """Whether a process still records into it."""
        for path in self.outbox.locks.glob(f"{self.key}.*.lives"):
            lock = FileLock(path)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                return True
            path.unlink(missing_ok=True)  # its process is dead
            lock.release()
        return False

    def remove(self) -> None:
        """Everything is sent."""
        gone = self.outbox.folder / f".{self.key}"
        try:
            self.folder.rename(gone)  # at once, so that nobody sees half of it
        except FileNotFoundError:
            return
        shutil.rmtree(gone, ignore_errors=True)


class Writer:
    """Appends records to a box. Each process has its own; a forked child shares its parent's, which works, too."""

    def __init__(self, box: Box):
        self.box = box
        name = f"{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self._lock = FileLock(box.outbox.locks / f"{box.key}.{name}.lives", thread_local=False)
        self._lock.acquire(timeout=0)
        self._paths = {kind: box.folder / f"{name}{kind}" for kind in (FACTS, FILES)}
        self._open: dict[str, int] = {}
        self._torn: set[str] = set()

    def fact(self, record: dict[str, Any]) -> None:
        """Append a record without files. Raises OSError."""
        self._append(FACTS, record)

    def files(self, to: str | None, content: Path | dict[str, bytes], **more: Any) -> None:
        """Keep files as they are now and record that they go to `to` of the run. Raises OSError.

        content: a file, a folder whose content is meant, or the bytes of files by name.
        """
        place = self.box.folder / "files" / uuid.uuid4().hex[:12]
        place.mkdir()
        if isinstance(content, dict):
            for name, each in content.items():
                (place / name).write_bytes(each)
        elif content.is_dir():
            shutil.copytree(content, place, dirs_exist_ok=True, copy_function=_keep)
        else:
            _keep(content, place / content.name)
        self._append(FILES, {"kind": "files", "at": f"files/{place.name}", "to": to, **more})

    def close(self) -> None:
        """Nothing more is recorded by this process."""
        for handle in self._open.values():
            os.close(handle)
        self._open = {}
        Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()

    def _append(self, kind: str, record: dict[str, Any]) -> None:
        line = (json.dumps(record) + "\n").encode()
        if kind in self._torn:
            line = b"\n" + line  # ends what is left of the one before
        if kind not in self._open:
            self._open[kind] = os.open(self._paths[kind], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._torn.add(kind)
        if os.write(self._open[kind], line) < len(line):  # one call: whole lines, whoever else writes
            raise OSError(28, "No space left on device")
        self._torn.discard(kind)


def amount(record: dict[str, Any]) -> int:
    """How many metrics, parameters, tags a record has; pictures and files are counted by the record."""
    return len(record.get("rows") or record.get("values") or "1")


def in_words(amounts: Counter, content: int = 0) -> str:
    """Counter(metrics=40, files=1) -> "40 metrics, 1 picture or file"; content: bytes of the files, in brackets."""
    parts = [f"{amounts[kind]:,} {words[amounts[kind] != 1]}" for kind, words in WORDS.items() if amounts[kind]]
    return ", ".join(parts) + (f" ({content / 1e6:.1f} MB)" if content else "")


def write_json(path: Path, values: Any) -> None:
    """Written aside and renamed."""
    aside = path.with_name(f"{path.name}.part")
    aside.write_text(json.dumps(values, indent=1, sort_keys=True), encoding="utf-8")
    os.replace(aside, path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _keep(source: str | Path, target: str | Path) -> None:
    """A copy; of weights, which may be large and are only ever replaced, a second name for the same bytes."""
    if str(source).endswith(".safetensors"):
        try:
            os.link(source, target)
            return
        except OSError:  # another file system, or one without links
            pass
    shutil.copyfile(source, target)
