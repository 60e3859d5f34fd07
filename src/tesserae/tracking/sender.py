"""The process that sends one run's journal while it is written: what a store costs, it costs this process.

    python -m tesserae.tracking.sender .tracking/outbox/KEY

It outlives the process that records, ends the run as killed where that dies without a word, and then sends what
earlier runs left.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

from tesserae.tracking.journal import Journal, journals
from tesserae.tracking.replay import Store, Unusable, deliver
from tesserae.tracking.run import SYNC
from tesserae.tracking.store import StoreFault, explained, reason_of, shown

PASS_SECONDS = 1.0  # between two looks at the journal
PATIENCE_SECONDS = 30.0  # pause after a failure


def main() -> int:
    """0 when all is sent, 1 when something waits."""
    logging.disable(logging.CRITICAL)  # MLflow's own words of each failure
    return Sender(Journal(Path(sys.argv[1]))).work()


class Sender:
    """Sends a journal until its run is over and all is sent, or its run is over and the store is away."""

    def __init__(self, journal: Journal):
        self.journal, self.home = journal, journal.folder.parents[2]
        header = journal.header
        self.store = Store(self.home, header.get("uri"), header.get("experiment"))
        self._monitor = None
        self._id: str | None = None
        self._said = self._sent_others = False

    def work(self) -> int:
        """Work to the end; 0 when all is sent."""
        while self.journal.exists():
            if self.journal.over():
                self._stop_monitor()
            try:
                deliver(self.journal, self.store)
                self._say_id()
                self._send_others()
                self._start_monitor()
                self._wait(PASS_SECONDS)
            except Exception as error:
                self._stop_monitor()
                self._failed(error)
                if self._wait(PATIENCE_SECONDS):
                    return 1
        return 0

    def _say_id(self) -> None:
        """To the process that records, for when the journal is gone."""
        if self._id is None:
            self._id = self.store.ids[self.journal.key]
            with suppress(OSError):  # it may be dead
                os.write(1, f"{self._id}\n".encode())

    def _wait(self, seconds: float) -> bool:
        """Wait; no longer than until the run is over, which is the answer."""
        end = time.monotonic() + seconds
        while not self.journal.over():
            if time.monotonic() > end:
                return False
            time.sleep(0.1)
        return True

    def _send_others(self) -> None:
        """What earlier runs left for this store, or for an address that was none."""
        if self.journal.sent.get("problem"):
            self.journal.note(problem="")
        if self._sent_others:
            return
        self._sent_others = True
        for each in journals(self.home):
            header = each.header
            if each.key != self.journal.key and each.over() and \
                    (header.get("uri") == self.store.uri or each.sent.get("unusable")):
                deliver(each, Store(self.home, self.store.uri, header.get("experiment")))

    def _start_monitor(self) -> None:
        """MLflow's own measures of the machine; nothing where MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING is false."""
        wanted = os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true").lower() not in ("false", "0")
        if wanted and self._monitor is None and not self.journal.over():
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            self._monitor = SystemMetricsMonitor(self._id, resume_logging=True,
                                                 tracking_uri=self.store.address)
            self._monitor.start()

    def _stop_monitor(self) -> None:
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None

    def _failed(self, error: Exception) -> None:
        error = explained(error, self.store.address)
        unusable = isinstance(error, Unusable)
        self.journal.note(problem=reason_of(error), **({"unusable": True} if unusable else {}))
        if not self._said:
            self._said = True
            print(self._sentence(error), file=sys.stderr, flush=True)

    def _sentence(self, error: Exception) -> str:
        uri, waits = shown(self.store.uri or "at mlflow.db"), "what it records waits in .tracking/outbox"
        if isinstance(error, Unusable):
            return (f"MLFLOW_TRACKING_URI = {uri} cannot be used ({reason_of(error)}): set it to an address such as "
                    f"http://127.0.0.1:5000, or unset it. The work goes on; {waits}.")
        if isinstance(error, StoreFault):
            return f"{error} The work goes on; {waits} until then, and is sent by this stage, the next one or {SYNC}."
        return (f"MLflow's store {uri} fails ({reason_of(error)}). The work goes on; {waits}, and is sent when "
                f"the store is back, by this stage, the next one or {SYNC}.")


if __name__ == "__main__":
    sys.exit(main())
