"""The event loop and the sessions of a worker's coroutine tasks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future, wait
from typing import Any

from sqla_jobs.database.binding import Binding
from sqla_jobs.database.refusals import reason
from sqla_jobs.execution.coroutine import check_greenlet
from sqla_jobs.execution.transactions import WorkerTransactions
from sqla_jobs.tasks.declaration import Declaration
from sqla_jobs.worker.event_loop import EventLoop

log: logging.Logger = logging.getLogger("sqla_jobs.worker")

_CLOSE = 5.0
"""Seconds allowed for closing the connections of coroutine tasks."""
_LOOK = 1.0
"""Seconds between two checks that the event loop has not been closed."""
_LEAVE = 10.0
"""Seconds allowed for an asynchronous worker context to end."""


class Coroutines:
    """The event loop and the sessions for coroutine tasks. If nothing needs a loop, there is none.

    Raises `ConfigurationError` if greenlet is missing.
    """

    def __init__(
        self,
        declarations: Mapping[str, Declaration],
        binding: Binding,
        isolation: str,
        loop: asyncio.AbstractEventLoop | None,
        *,
        need_loop: bool,
    ) -> None:
        """Start the loop. `loop` is the application's event loop, if the tasks are to run in it.

        `need_loop` is true if something other than coroutine tasks needs a loop.
        """
        signatures = {name: one.signature for name, one in declarations.items() if one.signature.is_coroutine}
        self.tasks: frozenset[str] = frozenset(signatures)
        """The names of the coroutine tasks."""
        if signatures:
            check_greenlet(min(signatures))
        wants_session = any(signature.wants_session for signature in signatures.values())
        self._sessions = binding.async_sessions(isolation) if wants_session else None
        self.events: EventLoop | None = EventLoop(loop) if signatures or need_loop else None

    def transactions(self, make: Callable[..., WorkerTransactions], declaration: Declaration) -> WorkerTransactions:
        """Return the transactions of a coroutine task that takes a session. `make` makes them."""
        assert self._sessions is not None, "one of the tasks takes a session"
        assert declaration.signature.session_class is not None
        return make(
            self._sessions.sessions_of(declaration.signature.session_class, declaration.name),
            isolation=self._sessions.isolation,
        )

    def awaited(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Await a coroutine in the loop, from another thread, and return its result.

        Raises `RuntimeError` if the application has closed the loop.
        """
        assert self.events is not None, "something needs the loop"
        answer = self.events.call(coroutine)
        while wait([answer], _LOOK).not_done:
            if self.events.is_gone:
                raise RuntimeError("the event loop was closed")
        return answer.result()

    def awaited_last(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Do the same as `awaited`, but give up after a while: an abandoned coroutine may block the loop forever."""
        assert self.events is not None, "something needs the loop"
        return self.events.call(coroutine).result(_LEAVE)

    def sessions(self, wanted: int) -> int:
        """Return how many connections `wanted` simultaneous jobs of coroutine tasks use."""
        return 0 if self._sessions is None else self._sessions.at_most(wanted)

    def close_idle(self) -> None:
        """Close idle connections soon. Call this only while the loop is running."""
        if self.events is not None and self.events.is_own and self._sessions is not None:
            self.events.call(self._sessions.close_idle()).add_done_callback(_warn_if_failed)

    def close(self) -> None:
        """Close the connections and end the loop."""
        if self.events is None:
            return
        if self._sessions is not None and (self.events.is_own or self._sessions.is_made):
            try:
                self.events.call(self._sessions.close()).result(_CLOSE)
            except TimeoutError:
                log.warning("the event loop is held up, so the connections of coroutine tasks are left open")
            except Exception as error:  # noqa: BLE001 - the worker must still stop
                _warn(error)
        self.events.stop()


def _warn_if_failed(closed: Future[None]) -> None:
    if not closed.cancelled() and isinstance(error := closed.exception(), Exception):
        _warn(error)


def _warn(error: Exception) -> None:
    log.warning("the connections of coroutine tasks are left open: %s", reason(error))
