"""The connections on which a worker's runs store their steps."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from contextvars import copy_context
from typing import Any

from sqlalchemy import Connection, Engine

from sqla_jobs.database.engines import IdleConnections, close_engine, own_engine


class StepConnections:
    """A few connections, which are opened at the worker's first step. A step uses one of them for milliseconds."""

    most: int = 4
    """The maximum number of connections, and of threads that use them for coroutines."""

    def __init__(self, app: Engine, *, patience: float) -> None:
        """Connect like `app`, but wait at most `patience` seconds for a silent server."""
        self._app = app
        self._patience = patience
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._threads = ThreadPoolExecutor(self.most, "sqla_jobs-steps")
        """Not the event loop's own threads: the application's blocking calls may occupy all of those."""

    async def spawn(self, function: Callable[[], Any], /) -> Any:
        """Call `function` in another thread, for a coroutine."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, copy_context().run, function)

    def begin(self) -> AbstractContextManager[Connection]:
        """Open a transaction, and commit it at the end of the block."""
        return self._opened().execution_options(isolation_level="READ COMMITTED").begin()

    def once(self) -> AbstractContextManager[Connection]:
        """Open a connection for one statement, which is a transaction of its own."""
        return self._opened().begin()

    def _opened(self) -> Engine:
        with self._lock:
            if self._engine is None:
                engine = own_engine(self._app, patience=self._patience, most=self.most, name="sqla-jobs steps")
                self._idle = IdleConnections(engine)
                self._engine = engine
            return self._engine

    def close_idle(self) -> None:
        """Close the connections that nobody is using."""
        if self._engine is not None:
            self._idle.close()

    def close(self) -> None:
        """Close the connections. A connection that is still in use closes when it is returned."""
        self._threads.shutdown(wait=False)
        with self._lock:
            if self._engine is not None:
                close_engine(self._engine)
