"""Interrupts runs that take longer than their timeout, whatever the database is doing."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

from sqla_jobs.executor import Held
from sqla_jobs.interrupt import TimedOut

_LOOK = 0.1


class Watch:
    """Looks ten times a second at the deadlines of what runs here."""

    def __init__(self, held: Mapping[int, Held]) -> None:
        self._held = held
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="sqla_jobs-watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _loop(self) -> None:
        while not self._stop.wait(_LOOK):
            now = time.monotonic()
            for held in list(self._held.values()):
                if held.deadline is not None and now > held.deadline:
                    held.body.interrupt(TimedOut)
