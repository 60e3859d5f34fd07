"""The thread that sends: what this process records, then what earlier runs left in the outbox."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from tesserae.tracking.outbox import Box, Outbox, in_words
from tesserae.tracking.sending import Store, Unusable, deliver
from tesserae.tracking.sqlite import StoreFault
from tesserae.tracking.store import default_uri, explained, load_mlflow, reason_of, shown

PASS_SECONDS = 2.0  # between two looks at the outbox
PATIENCE_SECONDS = 30.0  # pause after a failure
END_SECONDS = 60.0  # wait at the end, while the store answers
LONGEST_SECONDS = 600.0  # the same while a file is sent: a model may be large
OTHERS_SECONDS = 10.0  # wait at the end for what earlier runs left
EXIT_SECONDS = 5.0  # wait when the process ends without a word
SYNC = "python -m tesserae.tracking sync"


class Sender:
    """Sends one run's records on until the run is over and all is sent. Nothing it meets reaches the caller."""

    def __init__(self, home: Path, box: Box):
        self.box, self.outbox = box, Outbox(home)
        self.store = Store(home, box.header.get("uri"))
        self._wake = threading.Condition()
        self._asked = self._answered = self._others_answered = 0
        self._away_until = 0.0
        self._slow = self._finished = self._done = self._said = False
        self._others_due = True
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)

    def start(self) -> None:
        """Begin. MLflow is imported here and now: an import in two threads at once is not safe."""
        try:
            load_mlflow()
        except Exception as error:
            self._failed(error)
        self._thread.start()

    def flush(self, seconds: float | None = None) -> None:
        """Wait until everything recorded so far is sent, or the store has failed, or the time is up."""
        began = time.monotonic()
        with self._wake:
            self._asked += 1
            mine = self._asked
            self._wake.notify_all()
            while self._thread.is_alive() and not self._done:
                now = time.monotonic()
                own = self._answered >= mine
                limit = OTHERS_SECONDS if own else LONGEST_SECONDS if self._slow else END_SECONDS
                if self._others_answered >= mine or now < self._away_until or now - began > (seconds or limit):
                    return
                self._wake.wait(0.1)

    def finish(self) -> None:
        """The run is over: flush, and say what is left."""
        self._finished = True
        self.flush()
        if self.box.folder.is_dir():
            waits = in_words(*self.box.waiting()) or "how this run ended"
            print(f"Not sent to MLflow yet: {waits}. It waits in .tracking/outbox, and the next stage or {SYNC} "
                  "sends it.", file=sys.stderr, flush=True)

    def leave(self) -> None:
        """The process ends, perhaps without having finished the run."""
        if not self._finished:
            self.flush(EXIT_SECONDS)

    def _work(self) -> None:
        while not self._done:
            with self._wake:
                if self._asked == self._answered == self._others_answered:
                    self._wake.wait(PASS_SECONDS)
                asked = self._asked
                pause = self._away_until - time.monotonic()
                if pause > 0:
                    self._wake.wait(min(pause, PASS_SECONDS))
                    continue
            try:
                self._pass(asked)
            except Exception as error:
                self._failed(error)
                self._others_due = True

    def _pass(self, asked: int) -> None:
        mine = deliver(self.box, self.store, Counter(), self._is_slow)
        with self._wake:
            if mine:
                self._answered = asked
                self._wake.notify_all()
            else:
                self._wake.wait(0.2)  # another process sends it
        if self._others_due and mine:
            self._others_due = False
            self._others()
        with self._wake:
            self._others_answered = self._answered
            self._done = not self.box.folder.is_dir()
            self._wake.notify_all()

    def _others(self) -> None:
        """What earlier runs left for this store, or for an address that was none."""
        for box in self.outbox.boxes():
            meant = box.unusable or box.header.get("uri") == self.store.uri
            if box.key != self.box.key and meant and not box.lives():
                deliver(box, self.store, Counter())

    def _is_slow(self, slow: bool) -> None:
        self._slow = slow

    def _failed(self, error: Exception) -> None:
        if not self._said:
            self._said = True
            with suppress(Exception):  # nobody may be there any longer to read it
                print(self._sentence(error), file=sys.stderr, flush=True)
        with self._wake:
            self._away_until = time.monotonic() + PATIENCE_SECONDS
            self._wake.notify_all()

    def _sentence(self, error: Exception) -> str:
        uri, waits = shown(self.store.uri or "at mlflow.db"), "what it records waits in .tracking/outbox"
        if isinstance(error, Unusable):
            self.box.make_unusable()
            return (f"MLFLOW_TRACKING_URI = {uri} cannot be used ({reason_of(error)}): set it to an address such as "
                    f"http://127.0.0.1:5000, or unset it. The work goes on; {waits}.")
        error = explained(error, self.store.uri or default_uri(self.store.root))
        if isinstance(error, StoreFault):
            return f"{error} The work goes on; {waits} until then, and is sent by this stage, the next one or {SYNC}."
        return (f"MLflow's store {uri} fails ({reason_of(error)}). The work goes on; {waits}, and is sent when "
                f"the store is back, by this stage, the next one or {SYNC}.")
