"""Hears that there are new jobs, from this process and from others."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy import Engine, func, select

from sqla_jobs import wakeup
from sqla_jobs.worker.patience import Patience

log = logging.getLogger("sqla_jobs.worker")

_LOOK = 0.5
"""Seconds between two looks at whether it is to stop."""


class Listener:
    """LISTENs on a connection of its own and calls `heard(queue)`; the shortcut, not the truth.

    Not through a pooler such as PgBouncer: it would leave the LISTEN behind in a connection that it hands
    to others. There, and while the connection is away, new jobs of other processes are found by polling.
    """

    def __init__(self, engine: Engine, channel: str, heard: Callable[[str], None]) -> None:
        self._engine = engine
        self._channel = channel
        self._heard = heard
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="sqla_jobs-listen", daemon=True)

    def start(self) -> None:
        self._unsubscribe = wakeup.subscribe(self._channel, self._heard)
        self._thread.start()

    def stop(self) -> None:
        self._unsubscribe()
        self._stop.set()
        self._thread.join(2 * _LOOK)

    def _loop(self) -> None:
        patience = Patience("listening for new jobs", self._stop)
        patience.run(self._listen)

    def _listen(self) -> None:
        with self._engine.connect() as connection:
            raw: psycopg.Connection[Any] = connection.connection.driver_connection  # type: ignore[assignment]
            if connection.scalar(select(func.pg_backend_pid())) != raw.info.backend_pid:
                log.info("a pooler stands before the server: new jobs of other processes are found by polling")
                return
            try:
                raw.execute(sql.SQL("LISTEN {}").format(sql.Identifier(self._channel)))
                self._heard("")  # whatever was said before
                while not self._stop.is_set():
                    for notify in raw.notifies(timeout=_LOOK):
                        self._heard(notify.payload)
            finally:
                connection.invalidate()  # nobody else is to get a connection that listens
