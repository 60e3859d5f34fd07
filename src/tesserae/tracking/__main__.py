"""What waits in .tracking/outbox, sent.

    python -m tesserae.tracking sync
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from tesserae.errors import TesseraeError
from tesserae.tracking.outbox import Box, Outbox
from tesserae.tracking.sending import Store, Unusable, deliver
from tesserae.tracking.store import default_uri, reason_of, shown, tracking_uri

WORDS = {"metrics": ("metric", "metrics"), "params": ("parameter", "parameters"), "tags": ("tag", "tags"),
         "files": ("picture or file", "pictures and files")}


def main(arguments: list[str] | None = None) -> int:
    """The command: 0 when nothing waits any longer, 1 when something does."""
    parser = argparse.ArgumentParser(
        prog="python -m tesserae.tracking", description="Send to MLflow what could not be sent before."
    )
    parser.add_argument("command", choices=["sync"])
    parser.add_argument("--to", metavar="URI", help="another store, for runs that theirs has not begun")
    options = parser.parse_args(arguments)
    from tesserae.stage import find_root
    from tesserae.tracking.store import real_root

    try:
        return sync(real_root(find_root()), options.to)
    except TesseraeError as error:
        print(error, file=sys.stderr)
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on.", file=sys.stderr)
    return 1


def sync(home: Path, to: str | None = None) -> int:
    """Send what waits below `home`, each run to its own store or to `to`; print what was sent and what is left."""
    stores: dict[str | None, Store] = {}
    down: dict[str | None, str] = {}
    left = 0
    boxes = [box for box in Outbox(home).boxes() if not box.lives()]
    if not boxes:
        print("Nothing waits in .tracking/outbox.")
        return 0
    for box in boxes:
        uri = _own(home) if box.unusable else box.header.get("uri")
        uri = to if to and not box.run_id else uri  # what one store has begun, another cannot go on with
        store = stores.setdefault(uri, Store(home, uri))
        sent, problem = Counter(), down.get(uri)
        if problem is None:
            try:
                problem = None if deliver(box, store, sent) else "another process sends it"
            except Exception as error:
                problem = _problem(error, uri or default_uri(home))
                down[uri] = problem
        left += _tell(box, sent, problem)
    print(f"{left} of {len(boxes)} runs wait: run the same command again when their store is back." if left else
          f"Everything is sent: {len(boxes)} {'run' if len(boxes) == 1 else 'runs'}.")
    return int(left > 0)


def _own(home: Path) -> str | None:
    uri = tracking_uri(home)
    return None if uri == default_uri(home) else uri


def _problem(error: Exception, uri: str) -> str:
    if isinstance(error, Unusable):
        return f"{shown(uri)} cannot be used ({reason_of(error)}); name another store with --to"
    return f"{shown(uri)} fails ({reason_of(error)})"


def _tell(box: Box, sent: Counter, problem: str | None) -> bool:
    """One line for a run; whether something of it waits."""
    said = [f"{count:,} {WORDS[kind][count != 1]}" for kind, count in sent.items() if kind in WORDS]
    said = ["sent " + ", ".join(said)] if said else []
    if sent["refused"]:
        said.append(f"the store refused {sent['refused']:,}, kept in .tracking/refused/{box.key}")
    waits = box.folder.is_dir()
    if waits:
        records, content = box.size()
        said.append(f"{records:,} records{f' and {content / 1e6:.1f} MB of files' if content else ''} wait"
                    + (f": {problem}" if problem else ""))
    print(f"{box.key}: {'; '.join(said) or 'ended'}.")
    return waits


if __name__ == "__main__":
    sys.exit(main())
