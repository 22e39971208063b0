"""The storage of a run's steps, sleeps and waits. Each write requires the lease of the run."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, NamedTuple, NoReturn, TypeVar

import sqlalchemy as sa
import tenacity
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.util import greenlet_spawn

from sqla_jobs.errors import ArgumentsError, LeaseLost, RowHeld
from sqla_jobs.execution.held_job import Attempt
from sqla_jobs.execution.interrupt import GivenUp, LeaseGone
from sqla_jobs.execution.surroundings import log_after_commit
from sqla_jobs.execution.transactions import Transactions
from sqla_jobs.models.types import StepKind
from sqla_jobs.queries import Queries, RunEnd
from sqla_jobs.queries.steps import NewStep, StoredStep, Wait
from sqla_jobs.rules.outcomes import Outcome, RunOutcome
from sqla_jobs.tasks.steps import Suspension

T = TypeVar("T")
_TRIES = 5
"""The maximum number of tries of a database operation while the server is unavailable."""


class Connections(NamedTuple):
    """The connections for storing steps, separate from the sessions of tasks."""

    once: Callable[[], AbstractContextManager[sa.Connection]]
    """Opens a connection for one statement, which is a transaction of its own."""
    begin: Callable[[], AbstractContextManager[sa.Connection]]
    """Opens a transaction, and commits it at the end of the block."""
    spawn: Callable[[Callable[[], Any]], Awaitable[Any]]
    """Returns an awaitable that calls a function, which uses these connections."""


class Received(NamedTuple):
    """The result of a run's wait for a signal."""

    kind: StepKind
    """`signal`, or `timeout` if no signal arrived in time."""
    payload: Any
    """The value that the signal was sent with."""


Read = Callable[[str | None], Any]
"""Reads JSON text as the type that a task expects. Raises `ArgumentsError` if the text does not fit."""


def as_received(wait: StoredStep, read: Read) -> Received:
    """Return the result of a finished wait."""
    kind = StepKind(wait.kind)
    return Received(kind, None if kind == StepKind.timeout else read(wait.result))


class Unsure(Exception):
    """A COMMIT has failed, or got no answer. It may have stored its step nevertheless."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error: Exception = error


class StepStore:
    """Stores the steps of tasks without a session, each in a transaction of its own.

    Where it does not wait for the job's row, its methods raise `RowHeld`.
    """

    ahead: float = 0.0
    """For tests: a sleep or wait that ends within this many seconds counts as over when its job runs again."""

    def __init__(self, queries: Queries, connections: Connections, attempt: Attempt) -> None:
        self._queries = queries
        self._steps = queries.steps
        self._connections = connections
        self._attempt = attempt
        self._job = attempt.job

    def spawn(self, function: Callable[[], Any], /) -> Awaitable[Any]:
        """Return an awaitable that calls `function`, which may call `load`, `sleep`, `receive` or `recall`."""
        return self._connections.spawn(function)

    def spawn_in_session(self, function: Callable[[], Any], /) -> Awaitable[Any]:
        """Return an awaitable that calls `function`, which may call `has_written`, `undo` or `keep`."""
        return self._connections.spawn(function)

    def load(self) -> list[StoredStep]:
        """Return the job's steps."""

        def loaded() -> list[StoredStep]:
            with self._connections.once() as connection:
                return self._steps.load(connection, self._job.job_id)

        return _tried(loaded)

    def has_written(self) -> bool:
        """Return whether the run's transaction has writes that the next step would commit with its result."""
        return False

    def undo(self) -> None:
        """Roll back what a failed step has written in the run's transaction. Here, it has written nothing."""

    def keep(self, name: str, number: int, result: str | None, *, took: float) -> str | None:
        """Store a step's result, and return it as stored.

        If an earlier COMMIT, whose answer was lost, has stored another one, return that one. Raises `LeaseGone`;
        `RowHeld`, after which the call is to be repeated; `Unsure`, after which `recall` is to be called; and
        `GivenUp`, which ends the run.
        """
        step = NewStep(self._job, name, number, result, took)

        def store() -> str | None:
            try:
                with self._connections.once() as connection:
                    return self._steps.record(connection, step)
            except LeaseLost:
                raise LeaseGone from None
            except IntegrityError as error:
                return self.recall(name, error)

        return _tried(store)

    def recall(self, name: str, error: Exception) -> str | None:
        """Return the result of a step if the COMMIT that raised `error` has stored it. Otherwise raise `error`.

        Raises `LeaseGone` and `RowHeld`.
        """

        def find() -> StoredStep | None:
            with self._held() as connection:  # nobody else holds the row, so no COMMIT of the step is in progress
                return self._find(connection, name)

        if (stored := _tried(find)) is None:
            raise error
        if stored.run_id == self._job.run_id and not isinstance(error, IntegrityError) and not _is_passing(error):
            log_after_commit(error, self._attempt, f"the step {name!r:.200} is stored")
        return stored.result

    def _find(self, connection: sa.Connection, name: str) -> StoredStep | None:
        return next((one for one in self._steps.load(connection, self._job.job_id) if one.name == name), None)

    @contextmanager
    def _held(self) -> Generator[sa.Connection]:
        """Open a transaction that locks the job's row, and commit it at the end. Raises `LeaseGone` and `RowHeld`."""
        with self._connections.begin() as connection:
            if not self._steps.hold(connection, self._job):
                raise LeaseGone
            yield connection

    def sleep(self, name: str, number: int, length: float) -> None:
        """Return if the sleep is over. Otherwise store the run's end, and raise `Suspension`."""

        def slept() -> RunEnd | None:
            with self._held() as connection:
                wait = self._waits(connection, name, number, StepKind.sleep, length)
                if not wait.is_over:
                    return self._put_off(connection, name, wait)
                self._steps.end_wait(connection, self._job.job_id, name, kind=StepKind.sleep)
                return None

        if (end := _tried(slept)) is not None:
            self._suspend(end)

    def receive(self, name: str, number: int, signal: str, timeout: float | None, read: Read) -> Received:
        """Return the result if the wait is over. Otherwise store the run's end, and raise `Suspension`.

        A payload that does not fit is discarded: the error of `read` is raised, and the wait stays open.
        """

        def received() -> Received | RunEnd | ArgumentsError:
            with self._held() as connection:  # the sender locks the row, too, so each sees what the other stored
                job_id = self._job.job_id
                wait = self._waits(connection, name, number, StepKind.signal, timeout)
                if wait.is_finished and (stored := self._find(connection, name)):
                    return as_received(stored, read)  # an earlier COMMIT, whose answer was lost, has stored it
                payload = self._steps.take_signal(connection, job_id, signal)
                if payload is None and not wait.is_over:
                    return self._put_off(connection, name, wait)
                kind = StepKind.timeout if payload is None else StepKind.signal
                try:
                    value = None if payload is None else read(payload)
                except ArgumentsError as error:
                    return error  # raised after the commit, which deletes the signal and keeps the wait
                self._steps.end_wait(connection, job_id, name, kind=kind, result=payload)
                return Received(kind, value)

        found = _tried(received)
        if isinstance(found, ArgumentsError):
            raise found
        return found if isinstance(found, Received) else self._suspend(found)

    def _waits(self, connection: sa.Connection, name: str, number: int, kind: StepKind, length: float | None) -> Wait:
        """Return the sleep or wait of this name. Begin it if no earlier run has."""
        found = self._steps.look_at_wait(connection, self._job.job_id, name, ahead=self.ahead)
        return found or self._steps.open_wait(connection, self._job, name, number, kind, length=length)

    def _put_off(self, connection: sa.Connection, name: str, wait: Wait) -> RunEnd:
        """Store the run's end and return it.

        This happens in the transaction that found no signal, so that none arrives in between.
        """
        end = self._attempt.ended(Outcome(RunOutcome.snoozed, delay=wait.left))
        if self._queries.finish_any(connection, [end._replace(outcome=Outcome.snoozed(0.0))]):
            raise LeaseGone
        self._steps.put_off(connection, self._job.job_id, name)
        return end

    def _suspend(self, end: RunEnd) -> NoReturn:
        """Suspend the task. The run's end is already stored, and nothing else may be stored for the run."""
        self._attempt.suspended = end
        self._attempt.is_committed = True
        raise Suspension


class SessionStepStore(StepStore):
    """Stores the steps of transactional tasks. Each result is committed together with the step's own writes."""

    def __init__(
        self, queries: Queries, connections: Connections, attempt: Attempt, transactions: Transactions
    ) -> None:
        super().__init__(queries, connections, attempt)
        self._transactions = transactions
        assert attempt.session is not None, "the task takes a session"
        self._session = attempt.session

    def spawn_in_session(self, function: Callable[[], Any], /) -> Awaitable[Any]:
        return greenlet_spawn(function)

    def has_written(self) -> bool:
        return self._transactions.has_written(self._session)

    def undo(self) -> None:
        with suppress(Exception):  # the step's own error matters more, and a lost connection fails at its next use
            self._transactions.undo_part(self._session)

    def keep(self, name: str, number: int, result: str | None, *, took: float) -> str | None:
        try:
            return self._transactions.commit_part(self._session, NewStep(self._job, name, number, result, took))
        except LeaseLost:
            raise LeaseGone from None
        except RowHeld:  # the server has waited long enough
            self.undo()
            raise GivenUp from None
        except Exception as error:  # noqa: BLE001 - `recall` raises it
            self.undo()  # otherwise this transaction may itself hold the row
            raise Unsure(error) from None


def _tried(call: Callable[[], T]) -> T:
    """Return the result of `call`. Repeat the call for a few seconds while the server is unavailable."""
    return _RETRYING.copy()(call)


def _is_passing(error: BaseException) -> bool:
    is_lost = isinstance(error, DBAPIError) and error.connection_invalidated
    return is_lost or isinstance(error, OperationalError | InterfaceError | PoolTimeout)


_RETRYING = tenacity.Retrying(
    retry=tenacity.retry_if_exception(_is_passing),
    stop=tenacity.stop_after_attempt(_TRIES),
    wait=tenacity.wait_random_exponential(multiplier=0.2, max=3.0),
    sleep=time.sleep,
    reraise=True,
)
