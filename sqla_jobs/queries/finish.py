"""Storage of the ends of attempts, with one fenced statement for any number of ends."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import ClassVar
from uuid import UUID

from sqla_jobs.queries.erasing import ERASED_ON_SUCCESS, ERASED_WITH_JOBS, NO_RUN_IS_LOCKED
from sqla_jobs.queries.expressions import Tables
from sqla_jobs.queries.pieces import read
from sqla_jobs.queries.sql_text import Pieces
from sqla_jobs.queries.statement import RenderedStatement, SqlConnection
from sqla_jobs.queries.succeed import SucceedMany
from sqla_jobs.queries.values import RunEnd, in_order, numbers, texts
from sqla_jobs.rules.outcomes import EXPIRY, RunOutcome

DELIVERED_WITHIN = 10.0
"""If a failed attempt's process does not call its handlers within these seconds, another process calls them."""


class _StoreEnds(RenderedStatement):
    """Store the end of each attempt whose lease is valid and whose job is not locked. Replace taken run ids."""

    text: ClassVar[str] = read("finish")
    pieces: Pieces = MappingProxyType(
        {
            "expiry": EXPIRY.type,
            "delivered_within": str(DELIVERED_WITHIN),
            "may_be_erased": "",
            "own_columns": "progress_message = CASE WHEN m.fraction IS NULL THEN j.progress_message ELSE m.message END",
            "erased": "",
        }
    )

    def __call__(self, connection: SqlConnection, ends: Sequence[RunEnd]) -> dict[int, str]:
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


class FinishAny(_StoreEnds):
    """Store ends of any kind."""

    def __init__(self, tables: Tables) -> None:
        super().__init__(tables)
        self._finish_erased = FinishErased(tables)

    def __call__(self, connection: SqlConnection, ends: Sequence[RunEnd]) -> dict[int, str]:
        erased = [end for end in ends if end.outcome.erases]
        if not erased:
            return super().__call__(connection, ends)
        others = [end for end in ends if not end.outcome.erases]
        fates = self._finish_erased(connection, erased)
        return fates | super().__call__(connection, others) if others else fates


class FinishErased(_StoreEnds):
    """Store successful ends, and erase the arguments and earlier runs of their jobs."""

    pieces: Pieces = MappingProxyType(
        {
            **_StoreEnds.pieces,
            "may_be_erased": f" AND {NO_RUN_IS_LOCKED}",
            "own_columns": ERASED_ON_SUCCESS,
            "erased": f", {ERASED_WITH_JOBS}",
        }
    )


class Finish:
    """Store the ends of attempts, with a cheaper statement for the successful ones."""

    def __init__(self, tables: Tables) -> None:
        self._succeed_many = SucceedMany(tables)
        self._finish_any = FinishAny(tables)

    def __call__(self, connection: SqlConnection, ends: Sequence[RunEnd]) -> dict[int, str]:
        """Store the ends of attempts whose lease is still valid.

        Never wait for a locked row. Return, by run id, one word for each end that was not stored:

        - "locked": another session holds the row. Try again.
        - "known": the run is already stored, since an earlier commit by this process went through. If the cheaper
          statement could store only some of the successful ends, the ends that it stored are "known", too.
        - "rescued": the run is stored, as lost.
        - "lost": there is no run.

        A retry that a cancel cuts short is stored, and returned, as "cancelled".
        """
        went_well, others = _apart(ends)
        if went_well and self._succeed_many(connection, went_well) < len(went_well):
            others = list(ends)
        return self._finish_any(connection, others) if others else {}


def _apart(ends: Sequence[RunEnd]) -> tuple[list[RunEnd], list[RunEnd]]:
    """Separate the ends that the cheaper statement can store from the other ends. Return both.

    The former are successful, have no progress, erase nothing, and belong to one process.
    """
    went_well: list[RunEnd] = []
    others: list[RunEnd] = []
    process_id: UUID | None = None
    for end in ends:
        outcome = end.outcome
        is_plain = end.progress is None and outcome.kind is RunOutcome.succeeded and not outcome.erases
        theirs = end.lease.process_id
        if is_plain and process_id is None:
            process_id = theirs
        is_alike = theirs is process_id or theirs == process_id  # identity first: comparing UUIDs runs Python code
        (went_well if is_plain and is_alike else others).append(end)
    return went_well, others
