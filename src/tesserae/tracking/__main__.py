"""What waits in .tracking/outbox, sent; MLflow's pages of all runs.

    python -m tesserae.tracking sync
    python -m tesserae.tracking ui --port 5000
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path

from tesserae.errors import TesseraeError, command
from tesserae.files import find_root
from tesserae.tracking.journal import Journal, journals
from tesserae.tracking.replay import deliver
from tesserae.tracking.store import IMPATIENT, Store, StoreFault, explained, real_root, reason_of

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
    with command():
        home = real_root(find_root())
        return sync(home, options.to) if options.command == "sync" else ui(home, options.port)


def sync(home: Path, to: str | None = None) -> int:
    """Send what waits below `home`, each run to its own store or to `to`; print what was sent and what is left."""
    for key, value in IMPATIENT.items():
        os.environ.setdefault(key, value)
    failed: dict[str, str] = {}
    left = 0
    for journal in journals(home):
        if journal.over():
            print(f"{journal.key}: {_sent(journal, home, to, failed)}.")
            left += journal.exists()
        else:
            print(f"{journal.key}: it is still being recorded, and its stage sends it.")
    for sentence in failed.values():
        print(sentence)
    print("Then run the same command again." if left else "Nothing else waits in .tracking/outbox.")
    return int(left > 0)


def ui(home: Path, port: int) -> int:
    """MLflow's pages, in this process's place; the store is made where it is missing."""
    free = next((each for each in range(port, min(port + PORTS, 65536)) if _is_free(each)), None)
    if free is None:
        raise TesseraeError(f"Port {port} cannot be used, nor any of the {PORTS} from it on: name another one, as in "
                            "make ui PORT=8080.")
    store = Store(home, experiment=os.environ.get("MLFLOW_EXPERIMENT_NAME"))
    try:
        experiment = store.experiment
    except Exception as error:
        raise explained(error, store.uri) from None
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


def _sent(journal: Journal, home: Path, to: str | None, failed: dict[str, str]) -> str:
    """Send a run; what became of it. failed: stores that fail, and a sentence of each."""
    header = journal.header
    began_elsewhere = journal.sent.get("run_id")  # what one store has begun, another cannot go on with
    store = Store(home, header.get("uri") if began_elsewhere or not to else to, header.get("experiment"))
    if store.uri not in failed:
        try:
            deliver(journal, store)
        except Exception as error:
            error = explained(error, store.uri)
            failed[store.uri] = str(error) if isinstance(error, StoreFault) else (
                f"MLflow's store {store.shown()} fails ({reason_of(error)}): --to URI names another.")
    kept = f", but for what the store refused, which is in {journal.refused.relative_to(home)}"
    done = "not sent yet" if journal.exists() else "sent"
    return done + (kept if journal.refused.exists() else "")


if __name__ == "__main__":
    sys.exit(main())
