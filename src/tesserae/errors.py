"""The errors that a user is meant to read."""

from __future__ import annotations

import errno
import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)
FULL_WORDS = ("No space left on device", "Disk quota exceeded", "database or disk is full")


class TesseraeError(Exception):
    """Something the user can put right. The message is one sentence: what is wrong, where, and the remedy."""

    def _render_traceback_(self) -> list[str]:
        """IPython asks for this: a notebook shows the sentence alone, and the pipeline knows it by that."""
        return [str(self)]


class DiskFullError(TesseraeError):
    """Something could not be written for want of space; what was there before is intact."""


@contextmanager
def command() -> Iterator[None]:
    """Around a command's work: a TesseraeError ends it with the sentence alone and status 1, Ctrl-C with 130.

    What is printed goes out line by line, also into a file or a pipe.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    try:
        yield
    except TesseraeError as error:
        raise SystemExit(str(error)) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Around what writes `path`: a full disk, or one that may not be written, becomes one sentence.

    Raises DiskFullError, or TesseraeError for any other fault of the system. Libraries that are not Python's, such as
    safetensors, report the same faults in errors of their own, which are known by their words.
    """
    try:
        yield
    except TesseraeError:
        raise
    except Exception as error:
        path = Path(path)
        named = f"{path.parent.name}/{path.name}"
        with suppress(OSError):
            path.with_name(f"{path.name}.part").unlink(missing_ok=True)  # half of it would take what space is left
        if is_full(error):
            raise DiskFullError(f"The disk is full, {named} could not be written: free some space, then run again."
                                ) from None
        if isinstance(error, OSError) and error.strerror:
            raise TesseraeError(f"{named} cannot be written ({error.strerror}): see to the disk and its rights, then "
                                "run again.") from None
        raise


def see_writable(*folders: Path) -> None:
    """See that all these folders can be written, or made. Raises TesseraeError, which names the first that cannot."""
    for folder in folders:
        there = next(each for each in (folder, *folder.parents) if each.exists())
        if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
            continue
        why = "it is read-only" if there.is_dir() else "it is no folder"
        use = "" if there == folder else f", in which {folder.name} is to be made,"
        raise TesseraeError(f"{there}{use} cannot be written ({why}): see to its owner and its rights (ls -ld, chmod "
                            "u+w), then run again.")


def sentence_of(error: BaseException | str) -> str | None:
    """The sentence for a file that the system does not let be written or read; None for any other error."""
    found = re.search(r"\[Errno (\d+)\] ([^:']+): '(.+?)'", str(error))
    if not found or int(found[1]) not in (errno.EACCES, errno.EPERM, errno.EROFS):
        return None
    return f"{found[3]} cannot be used ({found[2]}): see to its owner and rights and to the disk, then run again."


def is_full(error: BaseException | str) -> bool:
    """Whether this is a full disk's error."""
    return getattr(error, "errno", None) in FULL or any(words in str(error) for words in FULL_WORDS)
