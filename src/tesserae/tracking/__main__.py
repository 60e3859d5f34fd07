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
from tesserae.tracking.journal import Journal, in_words, journals
from tesserae.tracking.replay import Store, Unusable, deliver
from tesserae.tracking.store import (
    IMPATIENT,
    StoreFault,
    default_uri,
    experiment_id,
    explained,
    make_client,
    real_root,
    reason_of,
    shown,
    tracking_uri,
)

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
    for key, value in IMPATIENT.items():
        os.environ.setdefault(key, value)
    every = journals(home)
    waiting = [each for each in every if each.over()]
    living = len(every) - len(waiting)
    if living:
        print("1 run is still being recorded: its stage sends it." if living == 1 else
              f"{living} runs are still being recorded: their stages send them.")
    if not waiting:
        print("Nothing else waits in .tracking/outbox." if living else "Nothing waits in .tracking/outbox.")
        return 0
    down: dict[str | None, str | StoreFault] = {}
    left = sum(_send(journal, home, to, down) for journal in waiting)
    faults = [problem for problem in down.values() if isinstance(problem, StoreFault)]
    print(*faults, sep="\n", end="\n" * bool(faults))
    if left:
        when = "that is done" if faults and len(faults) == len(down) else "their store is back"
        print(f"{left} of {len(waiting)} runs wait: run the same command again when {when}.")
    else:
        print(f"Everything is sent: {len(waiting)} {'run' if len(waiting) == 1 else 'runs'}.")
    return int(left > 0)


def ui(home: Path, port: int) -> int:
    """MLflow's pages, in this process's place; the store is made where it is missing."""
    free = next((each for each in range(port, min(port + PORTS, 65536)) if _is_free(each)), None)
    if free is None:
        raise TesseraeError(f"Port {port} cannot be used, nor any of the {PORTS} from it on: name another one, as in "
                            "make ui PORT=8080.")
    try:
        experiment = experiment_id(make_client(home), home)
    except Exception as error:
        raise explained(error, default_uri(home)) from None
    taken = "" if free == port else f"Port {port} is taken. "
    print(f"{taken}The runs are at http://127.0.0.1:{free}/#/experiments/{experiment}/runs", flush=True)
    os.chdir(home)
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # workers for what this project does not use
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


def _send(journal: Journal, home: Path, to: str | None, down: dict[str | None, str | StoreFault]) -> bool:
    """Send a run, and print a line of it; whether something of it waits. down: stores that fail, and how."""
    header, sent = journal.header, Counter()
    uri = tracking_uri(home) if journal.sent.get("unusable") else header.get("uri")
    if to and not journal.sent.get("run_id"):
        uri = to  # what one store has begun, another cannot go on with
    problem = down.get(uri)
    if problem is None:
        try:
            problem = None if deliver(journal, Store(home, uri, header.get("experiment")), sent) else (
                "another process sends it")
        except Exception as error:
            problem = down[uri] = _problem(error, uri or default_uri(home))
    said = [f"sent {in_words(sent)}"] if in_words(sent) else []
    if sent["refused"]:
        said.append(f"the store refused {sent['refused']:,}, kept in .tracking/refused/{journal.key}")
    if waits := journal.exists():
        reason = "" if problem is None or isinstance(problem, StoreFault) else f": {problem}"
        said.append(f"not sent yet {in_words(journal.waiting()) or 'how it ended'}{reason}")
    print(f"{journal.key}: {'; '.join(said) or 'ended'}.")
    return waits


def _problem(error: Exception, uri: str) -> str | StoreFault:
    error = explained(error, uri)
    if isinstance(error, StoreFault):
        return error
    if isinstance(error, Unusable):
        return f"{shown(uri)} cannot be used ({reason_of(error)}); name another store with --to"
    return f"{shown(uri)} fails ({reason_of(error)})"


if __name__ == "__main__":
    sys.exit(main())
