"""Work on many items at once, results in order, only a few of them waiting at any time."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any

NUM_PIECES = 1000  # of a set, unless a piece would have more than MAX_ITEMS
MAX_ITEMS = 65_536  # of a piece, which is what a stop may lose


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def pieces_of(count: int, min_items: int, multiple: int = 1) -> list[range]:
    """`count` items cut into about NUM_PIECES pieces of equal size, but for the last.

    The cut does not depend on how many processes work. A piece has `min_items` to MAX_ITEMS items, rounded up to a
    multiple.
    """
    size = min(max(min_items, -(-count // NUM_PIECES)), MAX_ITEMS)
    size = -(-size // multiple) * multiple
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def in_order(executor: Executor, function: Callable, items: Iterable, ahead: int) -> Iterator[Any]:
    """function(item) for each item, in the order of the items.

    At most `ahead` items are taken before their results are wanted, so memory stays bounded whatever their
    number; `Executor.map` takes them all at once.
    """
    waiting: deque = deque()
    try:
        for item in items:
            waiting.append(executor.submit(function, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for one in waiting:
            one.cancel()


def print_tenths(what: str) -> Callable[[int, int], None]:
    """A progress function that prints a line at each tenth: "160 of 1,600 pictures"."""

    def progress(done: int, count: int) -> None:
        if done == count or done * 10 // count > (done - 1) * 10 // count:
            print(f"{done:,} of {count:,} {what}", flush=True)

    return progress


def eta(what: str, every: float = 5.0) -> Callable[[int, int], None]:
    """A progress function that prints a line every few seconds: "512 of 4,096 codes, ETA 0:42"."""
    began = printed = time.monotonic()

    def progress(done: int, count: int) -> None:
        nonlocal printed
        now = time.monotonic()
        if done < count and now - printed < every:
            return
        printed, left = now, (now - began) * (count - done) / max(done, 1)
        print(f"{done:,} of {count:,} {what}, ETA {int(left) // 60}:{int(left) % 60:02d}", flush=True)

    return progress


class Memory:
    """Memory that threads have in common: work that needs more than is free waits for others to end."""

    def __init__(self, total: int) -> None:
        self._free, self._total = total, total
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, amount: int) -> Iterator[None]:
        """Around work that needs so many bytes; what needs more than there is works alone."""
        amount = min(amount, self._total)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= amount)
            self._free -= amount
        try:
            yield
        finally:
            with self._changed:
                self._free += amount
                self._changed.notify_all()
