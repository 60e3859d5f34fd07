"""What waits in .tracking/outbox, sent; MLflow's pages of all runs.

    python -m tesserae.tracking sync
    python -m tesserae.tracking ui --port 5000
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections import Counter
from pathlib import Path

from tesserae.errors import TesseraeError
from tesserae.tracking.outbox import Box, Outbox, in_words
from tesserae.tracking.sending import Store, Unusable, deliver
from tesserae.tracking.sqlite import StoreFault
from tesserae.tracking.store import default_uri, explained, make_client, reason_of, shown, tracking_uri

PORTS = 50


def main(arguments: list[str] | None = None) -> int:
    """The command: 0 when nothing waits any longer, 1 when something does."""
    parser = argparse.ArgumentParser(prog="python -m tesserae.tracking", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    sends = commands.add_parser("sync", help="send to MLflow what could not be sent before")
    sends.add_argument("--to", metavar="URI", help="another store, for runs that theirs has not begun")
    shows = commands.add_parser("ui", help="MLflow's pages of the runs in mlflow.db, on this machine alone")
    shows.add_argument("--port", type=int, default=5000, help="this or the next free one (default: %(default)s)")
    options = parser.parse_args(arguments)
    from tesserae.files import find_root
    from tesserae.tracking.store import real_root

    try:
        home = real_root(find_root())
        return sync(home, options.to) if options.command == "sync" else ui(home, options.port)
    except TesseraeError as error:
        print(error, file=sys.stderr)
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on.", file=sys.stderr)
    return 1


def sync(home: Path, to: str | None = None) -> int:
    """Send what waits below `home`, each run to its own store or to `to`; print what was sent and what is left."""
    stores: dict[str | None, Store] = {}
    down: dict[str | None, str | StoreFault] = {}
    left = 0
    every = Outbox(home).boxes()
    boxes = [box for box in every if not box.lives()]
    if len(boxes) < len(every):
        living = len(every) - len(boxes)
        print("1 run is still being recorded: its stage sends it." if living == 1 else
              f"{living} runs are still being recorded: their stages send them.")
    if not boxes:
        print("Nothing else waits in .tracking/outbox." if every else "Nothing waits in .tracking/outbox.")
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
                problem = down[uri] = _problem(error, uri or default_uri(home))
        left += _tell(box, sent, problem)
    faults = [problem for problem in down.values() if isinstance(problem, StoreFault)]
    print(*faults, sep="\n", end="\n" * bool(faults))
    if left:
        when = "that is done" if faults and len(faults) == len(down) else "their store is back"
        print(f"{left} of {len(boxes)} runs wait: run the same command again when {when}.")
    else:
        print(f"Everything is sent: {len(boxes)} {'run' if len(boxes) == 1 else 'runs'}.")
    return int(left > 0)


def ui(home: Path, port: int) -> int:
    """MLflow's pages, in this process's place; the store is made where it is missing, and follows a moved clone."""
    free = next((each for each in range(port, min(port + PORTS, 65536)) if _is_free(each)), None)
    if free is None:
        raise TesseraeError(f"Port {port} cannot be used, nor any of the {PORTS} from it on: name another one, as in "
                            "make ui PORT=8080.")
    try:
        make_client(home)
    except Exception as error:
        raise explained(error, default_uri(home)) from None
    taken = "" if free == port else f"Port {port} is taken. "
    print(f"{taken}The runs are at http://127.0.0.1:{free}", flush=True)
    os.chdir(home)
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "ui", "--workers", "1", "--backend-store-uri",
                              "sqlite:///mlflow.db", "--host", "127.0.0.1", "--port", str(free)])


def _is_free(port: int) -> bool:
    with socket.socket() as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            attempt.bind(("127.0.0.1", port))
        except (OSError, OverflowError):
            return False
    return True


def _own(home: Path) -> str | None:
    uri = tracking_uri(home)
    return None if uri == default_uri(home) else uri


def _problem(error: Exception, uri: str) -> str | StoreFault:
    error = explained(error, uri)
    if isinstance(error, StoreFault):
        return error
    if isinstance(error, Unusable):
        return f"{shown(uri)} cannot be used ({reason_of(error)}); name another store with --to"
    return f"{shown(uri)} fails ({reason_of(error)})"


def _tell(box: Box, sent: Counter, problem: str | StoreFault | None) -> bool:
    """One line for a run; whether something of it waits."""
    said = [f"sent {in_words(sent)}"] if in_words(sent) else []
    if sent["refused"]:
        said.append(f"the store refused {sent['refused']:,}, kept in .tracking/refused/{box.key}")
    waits = box.folder.is_dir()
    if waits:
        reason = "" if problem is None or isinstance(problem, StoreFault) else f": {problem}"
        said.append(f"not sent yet {in_words(*box.waiting()) or 'how it ended'}{reason}")
    print(f"{box.key}: {'; '.join(said) or 'ended'}.")
    return waits


if __name__ == "__main__":
    sys.exit(main())
