"""The connections on which a worker's runs store their steps."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from typing import Any

from sqlalchemy import Connection, Engine

from sqla_jobs.database.engines import close_engine, own_engine

_MOST = 4
"""The maximum number of connections. A step uses one of them for milliseconds, unless it waits for the job's row."""


class StepConnections:
    """A few connections, which are opened at the worker's first step."""

    def __init__(self, app: Engine, *, patience: float) -> None:
        """Connect like `app`, but wait at most `patience` seconds for a silent server."""
        self._app = app
        self._patience = patience
        self._lock = threading.Lock()
        self._engine: Engine | None = None

    def spawn(self, function: Callable[[], Any], /) -> Coroutine[Any, Any, Any]:
        """Call `function` in another thread, for a coroutine."""
        return asyncio.to_thread(function)

    def begin(self) -> AbstractContextManager[Connection]:
        """Open a transaction, and commit it at the end of the block."""
        return self._opened().execution_options(isolation_level="READ COMMITTED").begin()

    def once(self) -> AbstractContextManager[Connection]:
        """Open a connection for one statement, which is a transaction of its own."""
        return self._opened().begin()

    def _opened(self) -> Engine:
        with self._lock:
            if self._engine is None:
                self._engine = own_engine(self._app, patience=self._patience, most=_MOST, name="sqla-jobs steps")
            return self._engine

    def close(self) -> None:
        """Close the connections. A connection that is still in use closes when it is returned."""
        with self._lock:
            if self._engine is not None:
                close_engine(self._engine)
