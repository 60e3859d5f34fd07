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
from pathlib import Path

from tesserae.tracking.journal import SYNC, Journal, journals
from tesserae.tracking.replay import deliver
from tesserae.tracking.store import Store, StoreFault, explained, reason_of

PASS_SECONDS = 1.0  # between two looks at the journal
PATIENCE_SECONDS = 30.0  # pause after a failure


class Sender:
    """Sends a journal until its run is over and all is sent, or its run is over and the store is away."""

    def __init__(self, journal: Journal):
        header = journal.header
        self.journal, self._uri = journal, header.get("uri")
        self.store = Store(journal.folder.parents[2], self._uri, header.get("experiment"))
        self._monitor = None
        self._said = self._sent_others = False

    def work(self) -> int:
        """Work to the end: 0 when all is sent, 1 when something waits."""
        while self.journal.exists():
            if self.journal.over():
                self._stop_monitor()
            try:
                run_id = deliver(self.journal, self.store)
                self._send_others()
                if run_id and not self.journal.over():
                    self._start_monitor(run_id)
            except Exception as error:
                self._stop_monitor()
                self._say(explained(error, self.store.uri))
                if self._wait(PATIENCE_SECONDS):
                    return 1
            else:
                self._wait(PASS_SECONDS)
        return 0

    def _wait(self, seconds: float) -> bool:
        """Wait; no longer than until the run is over, which is the answer."""
        end = time.monotonic() + seconds
        while not self.journal.over():
            if time.monotonic() > end:
                return False
            time.sleep(0.1)
        return True

    def _send_others(self) -> None:
        """What earlier runs left for the same store."""
        if self._sent_others:
            return
        self._sent_others = True
        for each in journals(self.store.home):
            header = each.header
            if each.key != self.journal.key and header.get("uri") == self._uri and each.over():
                deliver(each, Store(self.store.home, self._uri, header.get("experiment")))

    def _start_monitor(self, run_id: str) -> None:
        """MLflow's own measures of the machine; none where MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING is false."""
        wanted = os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true").lower() not in ("false", "0")
        if wanted and self._monitor is None:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            self._monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=self.store.uri)
            self._monitor.start()

    def _stop_monitor(self) -> None:
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None

    def _say(self, error: Exception) -> None:
        """One sentence of the first failure."""
        if self._said:
            return
        self._said = True
        sentence = str(error) if isinstance(error, StoreFault) else (
            f"MLflow's store {self.store.shown()} fails ({reason_of(error)}).")
        print(f"{sentence} The work goes on; what it records waits in .tracking/outbox, and is sent when the "
              f"store is back, by this stage, the next one or {SYNC}.", file=sys.stderr, flush=True)


def main() -> int:
    """The command."""
    logging.disable(logging.CRITICAL)  # MLflow's own words of each failure
    return Sender(Journal(Path(sys.argv[1]))).work()


if __name__ == "__main__":
    sys.exit(main())
