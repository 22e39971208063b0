"""The event loop and the sessions of a worker's coroutine tasks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future

from sqla_jobs.database.binding import Binding
from sqla_jobs.database.refusals import reason
from sqla_jobs.execution.coroutine import check_greenlet
from sqla_jobs.execution.transactions import WorkerTransactions
from sqla_jobs.tasks.declaration import Declaration
from sqla_jobs.worker.event_loop import EventLoop

log: logging.Logger = logging.getLogger("sqla_jobs.worker")

_CLOSE = 5.0
"""Seconds allowed for closing the connections of coroutine tasks."""


class Coroutines:
    """The coroutine tasks of a worker, and their sessions in one database."""

    def __init__(
        self, declarations: Mapping[str, Declaration], binding: Binding, isolation: str, events: EventLoop | None
    ) -> None:
        """Prepare the sessions. `events` is the loop in which coroutine tasks run, if there are any."""
        self.tasks: frozenset[str] = coroutine_tasks(declarations)
        """The names of the coroutine tasks."""
        wants_session = any(declarations[name].signature.wants_session for name in self.tasks)
        self._sessions = binding.async_sessions(isolation) if wants_session else None
        self.events: EventLoop | None = events

    def transactions(self, make: Callable[..., WorkerTransactions], declaration: Declaration) -> WorkerTransactions:
        """Return the transactions of a coroutine task that takes a session. `make` makes them."""
        assert self._sessions is not None, "one of the tasks takes a session"
        assert declaration.signature.session_class is not None
        return make(
            self._sessions.sessions_of(declaration.signature.session_class, declaration.name),
            isolation=self._sessions.isolation,
        )

    def sessions(self, wanted: int) -> int:
        """Return how many connections `wanted` simultaneous jobs of coroutine tasks use."""
        return 0 if self._sessions is None else self._sessions.at_most(wanted)

    def close_idle(self) -> None:
        """Close idle connections soon. Call this only while the loop is running."""
        if self.events is not None and self.events.is_own and self._sessions is not None:
            self.events.call(self._sessions.close_idle()).add_done_callback(_warn_if_failed)

    def close(self) -> None:
        """Close the connections."""
        if self.events is not None and self._sessions is not None and (self.events.is_own or self._sessions.is_made):
            try:
                self.events.call(self._sessions.close()).result(_CLOSE)
            except TimeoutError:
                log.warning("the event loop is held up, so the connections of coroutine tasks are left open")
            except Exception as error:  # noqa: BLE001 - the worker must still stop
                _warn(error)


def coroutine_tasks(declarations: Mapping[str, Declaration]) -> frozenset[str]:
    """Return the names of the coroutine tasks. Raises `ConfigurationError` if greenlet, which they need, is missing."""
    names = frozenset(name for name, one in declarations.items() if one.signature.is_coroutine)
    if names:
        check_greenlet(min(names))
    return names


def _warn_if_failed(closed: Future[None]) -> None:
    if not closed.cancelled() and isinstance(error := closed.exception(), Exception):
        _warn(error)


def _warn(error: Exception) -> None:
    log.warning("the connections of coroutine tasks are left open: %s", reason(error))
