"""The sessions of a worker's tasks: their transactions, the connections for steps, and the number of both."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import Executor
from contextvars import copy_context
from functools import partial
from typing import Any

import sqlalchemy as sa

from sqla_jobs.database.binding import Binding
from sqla_jobs.database.engines import at_most
from sqla_jobs.execution.step_store import Connections
from sqla_jobs.execution.transactions import LazyTransactions, Transactions, WorkerTransactions
from sqla_jobs.queries import Queries
from sqla_jobs.runtime.settings import Settings
from sqla_jobs.tasks.declaration import Declaration
from sqla_jobs.worker.coroutines import Coroutines

STEPS_AT_ONCE = 4
"""How many more connections a worker has for the steps of its runs, and how many threads use them for coroutines."""


class TaskTransactions:
    """Selects the `Transactions` of a task. Tasks with the same kind of session share one `Transactions` object."""

    def __init__(
        self, binding: Binding, coroutines: Coroutines, queries: Queries, settings: Settings, isolation: str
    ) -> None:
        """Use the sessions of `binding` for plain tasks, and those of `coroutines` for coroutine tasks."""
        self._binding = binding
        self._coroutines = coroutines
        self._queries = queries
        self._settings = settings
        self._isolation = isolation
        self._known: dict[tuple[type[WorkerTransactions], type[Any] | None], Transactions] = {}

    def of(self, declaration: Declaration) -> Transactions:
        """Return the transactions of a task that takes a session."""
        kind = LazyTransactions if declaration.begins_lazily else WorkerTransactions
        key = (kind, declaration.signature.session_class)
        if key not in self._known:
            self._known[key] = self._made(kind, declaration)
        return self._known[key]

    def _made(self, kind: type[WorkerTransactions], declaration: Declaration) -> Transactions:
        settings = self._settings
        make = partial(kind, queries=self._queries, lease=settings.lease, patience=settings.patience)
        if declaration.signature.is_coroutine:
            return self._coroutines.transactions(make, declaration)
        assert declaration.signature.session_class is not None, "only transactional tasks have transactions"
        return make(
            self._binding.sessions_of(declaration.signature.session_class, declaration.name),
            isolation=self._isolation,
        )


def queues_of_sessions(declarations: Collection[Declaration]) -> set[str]:
    """Return the queues of plain tasks that take a session.

    Coroutine tasks get their connections from a separate pool.
    """
    plain = [one for one in declarations if one.signature.wants_session and not one.signature.is_coroutine]
    return {one.defaults["queue"] for one in plain}


def step_connections(engine: sa.Engine, threads: Executor) -> Connections:
    """Return the connections of this engine for storing steps. Coroutines use them in `threads`.

    The threads are not the event loop's own: the application's blocking calls may occupy all of those.
    """

    def spawn(function: Callable[[], Any]) -> Awaitable[Any]:
        return asyncio.get_running_loop().run_in_executor(threads, copy_context().run, function)

    return Connections(engine.begin, engine.execution_options(isolation_level="READ COMMITTED").begin, spawn)


def sessions_at_once(
    declarations: Collection[Declaration], settings: Settings, app: sa.Engine, coroutines: Coroutines
) -> int:
    """Return the maximum number of connections that jobs use.

    Pool sizes limit the number of connections. Coroutine tasks without a session use no connection.

    The number assumes that each job is in its task's queue, or in a queue that is not the default of any task.
    """
    others = {*settings.queues} - {one.defaults["queue"] for one in declarations}

    def jobs_of(some: list[Declaration]) -> int:
        return settings.jobs_of({*others, *(one.defaults["queue"] for one in some)}) if some else 0

    plain = [one for one in declarations if not one.signature.is_coroutine]
    awaited = [one for one in declarations if one.signature.is_coroutine and one.signature.wants_session]
    return at_most(app, jobs_of(plain)) + coroutines.sessions(jobs_of(awaited))
