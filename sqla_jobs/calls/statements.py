"""The statements that a process can send without SQLAlchemy, with their parameters and results.

Their SQL is in `queries`, whose classes inherit from the classes here. A worker sends the statements through
SQLAlchemy. Its parent process uses psycopg to send the text that a child has rendered.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, TypeAlias

from sqla_jobs.calls.values import ALL, MANY, Among, Lease, Promotion, Rescued, RunEnd, in_order, names, numbers, texts
from sqla_jobs.rules.outcomes import storable

Sender: TypeAlias = Any
"""An SQLAlchemy connection or session, or a psycopg connection: the value that `Transactions.begin` provides."""
StoreEnds = Callable[[Sender, Sequence[RunEnd]], dict[int, str]]


class Transactions(Protocol):
    """An SQLAlchemy engine, or its replacement in a process without SQLAlchemy."""

    def begin(self) -> AbstractContextManager[Sender]:
        """Return a context manager that yields a connection.

        Depending on the connection, the statements in the `with` block commit together at its end, or each by itself.
        """
        ...


class Rendered(NamedTuple):
    """A statement in psycopg's format, with the parameters that do not change between calls."""

    text: str
    fixed: dict[str, Any]


class Call:
    """A rendered statement, sent through psycopg.

    The classes in `queries` override `_rows` to send their statements through SQLAlchemy.
    """

    def __init__(self, rendered: Rendered) -> None:
        self._sent = rendered

    def _rows(self, connection: Sender, values: dict[str, Any]) -> list[Any]:
        text, fixed = self._sent
        rows: list[Any] = connection.execute(text, {**fixed, **values}).fetchall()
        return rows


class Beat(Call):
    """Write the heartbeats of processes."""

    def __call__(self, connection: Sender, process_ids: Collection[uuid.UUID]) -> dict[uuid.UUID, bool]:
        """Return, for each process that has a row, whether its heartbeat was written.

        False means that the process's row is locked.
        """
        return dict(self._rows(connection, {"process_ids": list(process_ids)}))


class Heartbeats(Call):
    """Read the last heartbeat of each process, in microseconds since 1970, and its lease in seconds."""

    def __call__(self, connection: Sender) -> dict[uuid.UUID, tuple[int, float]]:
        return {process_id: (heartbeat, lease) for process_id, heartbeat, lease in self._rows(connection, {})}


class DeleteExpired(Call):
    """Delete the rows of processes whose heartbeat still equals the given value. Skip locked rows."""

    def __call__(self, connection: Sender, silent: Mapping[uuid.UUID, int]) -> list[uuid.UUID]:
        """Return the ids of the deleted rows."""
        values = {"process_ids": list(silent), "heartbeats": list(silent.values())}
        return [process_id for (process_id,) in self._rows(connection, values)]


class SignOff(Call):
    """Delete the row of a process that ended."""

    def __call__(self, connection: Sender, process_id: uuid.UUID) -> bool:
        """Return whether the row is gone.

        False means that a claim by the process is still in progress on the server.
        """
        ((is_gone,),) = self._rows(connection, {"process_id": process_id})
        return bool(is_gone)


class Rescue(Call):
    """Rescue running jobs whose process has no row, and store a `lost` run for each job."""

    def __call__(self, connection: Sender, *, limit: int = MANY, among: Among = ALL) -> list[Rescued]:
        return [Rescued(*row) for row in self._rows(connection, {"limit": limit, **among.parameters()})]


class Candidates(Call):
    """Find the ids of some jobs that a bulk statement would process. After an error, these are tried in parts."""

    def __call__(self, connection: Sender, among: Among) -> list[int]:
        return [job_id for (job_id,) in self._rows(connection, among.parameters())]


class Leases(Call):
    """Find the leases of one process, except those whose run ids are in `known`."""

    def __call__(self, connection: Sender, process_id: uuid.UUID, known: Collection[int] = ()) -> list[Lease]:
        return [Lease(*row) for row in self._rows(connection, {"process_id": process_id, "known": list(known)})]


class CancelRequests(Call):
    """Find the runs that somebody has asked to cancel, among one process's runs of the given jobs."""

    def __call__(self, connection: Sender, process_id: uuid.UUID, job_ids: Collection[int]) -> dict[int, bool]:
        """Return, by run id, whether the process must be killed to end the run."""
        return dict(self._rows(connection, {"process_id": process_id, "ids": list(job_ids)}))


class ShowSetAside(Call):
    """Record in a process's row which rows it has set aside, with reasons. Remove the entries named in `gone`."""

    def __call__(
        self, connection: Sender, process_id: uuid.UUID, *, reasons: Mapping[str, str], gone: Collection[str]
    ) -> None:
        shown = {name: storable(reason, 500) for name, reason in reasons.items()}
        self._rows(connection, {"process_id": process_id, "gone": list(gone), "shown": json.dumps(shown)})


class ShowStalled(Call):
    """Record in a process's row that the process has executed nothing for `silence` seconds.

    A `silence` of `None` means that the process runs again.
    """

    def __call__(self, connection: Sender, process_id: uuid.UUID, silence: float | None) -> bool:
        """Return whether the row was updated. False means that it is locked or does not exist."""
        return bool(self._rows(connection, {"process_id": process_id, "silence": silence}))


class FinishAny(Call):
    """Store the end of each attempt whose lease is valid and whose job is not locked. Replace taken run ids."""

    def __call__(self, connection: Sender, ends: Sequence[RunEnd]) -> dict[int, str]:
        """Return fates by run id. An end that is stored unchanged has none. `Finish` explains the fates."""
        leases, outcomes, started, finished, progress = zip(*in_order(ends), strict=True)
        processes = {lease.process_id: str(lease.process_id) for lease in leases}
        failures = [outcome.failure for outcome in outcomes]
        values = {
            "job_ids": numbers([lease.job_id for lease in leases]),
            "run_ids": numbers([lease.run_id for lease in leases]),
            "process_ids": numbers([processes[lease.process_id] for lease in leases]),
            "outcomes": numbers([outcome.kind for outcome in outcomes]),
            "delays": texts([None if outcome.delay is None else str(outcome.delay) for outcome in outcomes]),
            "started": numbers(started),
            "finished": numbers(finished),
            "results": texts([outcome.result for outcome in outcomes]),
            "fractions": texts([None if reported is None else str(reported[0]) for reported in progress]),
            "messages": texts([reported and reported[1] for reported in progress]),
            "error_types": texts([failure and failure.type for failure in failures]),
            "errors": texts([failure and failure.message for failure in failures]),
            "tracebacks": texts([failure and failure.traceback for failure in failures]),
        }
        return dict(self._rows(connection, values))


class Promote(Call):
    """Queue at most `limit` scheduled jobs that are due, or will be due within `ahead` seconds.

    Also count the workers that serve any of `queues`.
    """

    def __call__(
        self,
        connection: Sender,
        *,
        ahead: float = 0.0,
        limit: int = MANY,
        queues: Collection[str] = (),
        among: Among = ALL,
    ) -> Promotion:
        return _promotion(self._rows(connection, _parameters(queues, among, ahead, limit)), limit)


class Poll(Call):
    """Promote as `Promote` does, and check whether other jobs are queued. Processes that do not claim jobs use it."""

    def __call__(
        self, connection: Sender, queues: Sequence[str], tasks: Sequence[str], among: Among = ALL
    ) -> Promotion:
        values = _parameters(queues, among) | {"tasks": names(tuple(tasks))}
        return _promotion(self._rows(connection, values), MANY)


def _parameters(queues: Collection[str], among: Among, ahead: float = 0.0, limit: int = MANY) -> dict[str, Any]:
    return {"ahead": ahead, "limit": limit, "queues": names(tuple(queues)), **among.parameters()}


def _promotion(rows: Sequence[Any], limit: int) -> Promotion:
    ((count, due_in, *others),) = rows
    return Promotion(count, 0.0 if count >= limit else due_in, *others)


class UnknownTo(Call):
    """Count, by task, the first 10,000 jobs waiting in `queues` whose task is not in `tasks`."""

    def __call__(self, connection: Sender, queues: Sequence[str], tasks: Sequence[str]) -> dict[str, int]:
        return dict(self._rows(connection, {"queues": list(queues), "tasks": list(tasks)}))


class Calls:
    """The statements that workers, clocks and the parents of workers share.

    The first argument of each statement is a connection.
    """

    beat: Beat
    heartbeats: Heartbeats
    delete_expired: DeleteExpired
    sign_off: SignOff
    rescue: Rescue
    to_rescue: Candidates
    leases: Leases
    cancel_requests: CancelRequests
    finish: StoreEnds
    finish_any: FinishAny
    show_set_aside: ShowSetAside
    show_stalled: ShowStalled
    promote: Promote
    to_promote: Candidates
    poll: Poll
    unknown_to: UnknownTo
