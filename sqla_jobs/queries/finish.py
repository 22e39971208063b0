"""Storage of the ends of attempts, with one fenced statement for any number of ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Double,
    Text,
    Uuid,
    and_,
    any_,
    bindparam,
    case,
    cast,
    func,
    insert,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB

from sqla_jobs.queries.erasing import erased_on_success, erased_with, no_run_is_locked
from sqla_jobs.queries.expressions import (
    Tables,
    array_of,
    committed_to_disk,
    each_locked,
    free_run_id,
    leased,
    message_of,
    messages,
    seconds,
    unnest_text,
    without_lease,
)
from sqla_jobs.queries.follow_ups import DELIVERED_WITHIN, follow_ups
from sqla_jobs.queries.losses import gets_attempt_back, loss_backoff, state_after_loss
from sqla_jobs.queries.restrictions import freed_by
from sqla_jobs.queries.statement import RenderedStatement, SqlConnection
from sqla_jobs.queries.succeed import SucceedMany
from sqla_jobs.queries.values import RunEnd, in_order, numbers, texts
from sqla_jobs.rules.outcomes import EXPIRY, RunOutcome

_RUN_COLUMNS = [
    *("id", "job_id", "attempt", "process_id", "started_at", "finished_at"),
    *("outcome", "result", "error_type", "error", "traceback", "untold_at"),
]
_ENDS, _GIVEN_BACK, _DELIVERED = (
    [literal_column(f"'{word}'", Text) for word in words]
    for words in (("succeeded", "failed", "cancelled"), ("released", "snoozed"), ("failed", "lost"))
)


class _StoreEnds(RenderedStatement):
    """Store the end of each attempt whose lease is valid and whose job is not locked. Replace taken run ids."""

    def __call__(self, connection: SqlConnection, ends: Sequence[RunEnd]) -> dict[int, str]:
        """Return fates by run id. An end that is stored unchanged has none. `Finish` explains the fates."""
        leases, outcomes, started, finished, progress = zip(*in_order(ends), strict=True)
        processes = {lease.process_id: str(lease.process_id) for lease in leases}
        failures = [outcome.failure and outcome.failure.as_stored for outcome in outcomes]
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

    def sql(self) -> Any:
        return _statement(self.tables, {})[0]


class FinishErased(_StoreEnds):
    """Store successful ends, and erase the arguments and earlier runs of their jobs."""

    def sql(self) -> Any:
        jobs, runs = self.tables.jobs, self.tables.runs
        statement, done = _statement(self.tables, erased_on_success(jobs), no_run_is_locked(runs, jobs))
        return statement.add_cte(*erased_with(vars(self.tables), done))


def _statement(tables: Tables, also: Mapping[str, Any], *where: Any) -> tuple[Any, Any]:
    """Return the statement that stores ends, and its CTE of the jobs that it changes.

    The statement also sets the columns in `also`. A job that does not meet the conditions `where` counts as locked.
    """
    ended = _ended()
    mine = _mine(tables, ended, *where)
    done = _done(tables, mine, also)
    is_told = or_(done.c.run_id.is_(None), and_(ended.c.outcome == "retried", done.c.state == "cancelled"))
    followed = follow_ups(tables, done)
    others = done.c.outcome.in_([literal_column(f"'{word}'", Text) for word in ("released", "lost")])
    statement = (
        select(ended.c.run_id, _fate(tables, ended, done).label("fate"))
        .select_from(ended.outerjoin(done, done.c.run_id == ended.c.run_id))
        # in this order, so that messages are sent even if no row is returned
        .where(case((messages(tables, *freed_by(tables, done, others), select(message_of(followed))), is_told)))
        .add_cte(_stored(tables, mine))
    )
    return statement, done


def _ended() -> Any:
    """Return the parameters as a table with one row for each end."""
    return unnest_text(
        "ended",
        job_id=(case((committed_to_disk(), bindparam("job_ids", type_=Text))), BigInteger),
        run_id=("run_ids", BigInteger),
        process_id=("process_ids", Uuid),
        outcome=("outcomes", Text),
        delay=("delays", Double),
        started=("started", Double),
        finished=("finished", Double),
        result=("results", Text),
        error_type=("error_types", Text),
        error=("errors", Text),
        traceback=("tracebacks", Text),
        fraction=("fractions", Double),
        message=("messages", Text),
    )


def _is_held(jobs: Any, ended: Any) -> Any:
    return leased(jobs, ended.c.job_id, ended.c.run_id, ended.c.process_id)


def _mine(tables: Tables, ended: Any, *where: Any) -> Any:
    """Return a CTE of the ends whose lease is valid, with the new state of each job. The CTE locks the jobs."""
    jobs = tables.jobs
    finished_at = jobs.c.started_at + seconds(ended.c.finished)
    state = case(
        (ended.c.outcome.in_(_ENDS), ended.c.outcome),
        (ended.c.outcome == "lost", state_after_loss(tables)),
        (jobs.c.cancel_requested_at.is_not(None), "cancelled"),
        (ended.c.delay.is_(None), "queued"),  # released: a retry and a snooze have a delay
        else_="scheduled",
    )
    delay = case((ended.c.outcome == "lost", loss_backoff(tables)), else_=ended.c.delay)
    found: Any = select(
        jobs.c.attempt,
        (jobs.c.started_at + seconds(ended.c.started)).label("started_at"),
        finished_at.label("finished_at"),
        (finished_at + seconds(delay)).label("due_at"),
        state.label("state"),
    ).where(_is_held(jobs, ended), *where)
    return each_locked(ended, found, "mine")


def _done(tables: Tables, mine: Any, also: Mapping[str, Any]) -> Any:
    """Return a CTE that changes the jobs of `mine`, and sets the columns in `also`."""
    jobs = tables.jobs
    is_lost_apart = and_(mine.c.outcome == "lost", gets_attempt_back(jobs, mine.c.state))
    is_expired = and_(mine.c.outcome == "cancelled", mine.c.error_type == EXPIRY.type)
    given_back = case((or_(mine.c.outcome.in_(_GIVEN_BACK), is_lost_apart, is_expired), 1), else_=0)
    return (
        update(jobs)
        .where(jobs.c.id == mine.c.job_id, jobs.c.id == any_(array_of(select(mine.c.job_id))))
        .values(
            {
                "attempt": func.greatest(mine.c.attempt - given_back, 0),
                "progress": func.coalesce(mine.c.fraction, jobs.c.progress),
                "progress_message": case((mine.c.fraction.is_(None), jobs.c.progress_message), else_=mine.c.message),
                **without_lease(tables, mine.c.state, due_at=mine.c.due_at, finished_at=mine.c.finished_at),
                **also,
            }
        )
        .returning(
            mine.c.run_id, mine.c.outcome, jobs.c.id, jobs.c.state, jobs.c.queue, jobs.c.gates, jobs.c.on_failure
        )
        .cte("done")
    )


def _stored(tables: Tables, mine: Any) -> Any:
    """Return a CTE that inserts the runs of `mine`."""
    # a cancel request that came in time turns a retry into a cancelled run, and ends the job
    cut_short = and_(mine.c.outcome == "retried", mine.c.state == "cancelled")
    # if a retry has no traceback, the attempt's own process was killed and cannot deliver the event
    is_undelivered = or_(mine.c.outcome.in_(_DELIVERED), and_(mine.c.outcome == "retried", mine.c.traceback.is_(None)))
    rows = select(
        free_run_id(tables, mine.c.run_id),
        mine.c.job_id,
        mine.c.attempt,
        mine.c.process_id,
        mine.c.started_at,
        mine.c.finished_at,
        case((cut_short, "cancelled"), else_=mine.c.outcome),
        cast(mine.c.result, JSONB),
        mine.c.error_type,
        mine.c.error,
        mine.c.traceback,
        case((is_undelivered, func.clock_timestamp() + seconds(literal_column(str(DELIVERED_WITHIN))))),
    ).where(mine.c.outcome != "released")
    return insert(tables.runs).from_select(_RUN_COLUMNS, rows).cte("stored")


def _fate(tables: Tables, ended: Any, done: Any) -> Any:
    """Return the word for the fate of an end that was not stored, or that was stored as cancelled."""
    jobs, runs = tables.jobs, tables.runs
    # rows are looked up one by one: EXISTS may read the whole table first
    still = select(jobs.c.id).where(_is_held(jobs, ended)).correlate(ended).scalar_subquery()
    before = select(runs.c.outcome).where(runs.c.id == ended.c.run_id).correlate(ended).scalar_subquery()
    return case(
        (done.c.run_id.is_not(None), "cancelled"),
        (still.is_not(None), "locked"),
        else_=case({"": "lost", "lost": "rescued"}, value=func.coalesce(before, ""), else_="known"),
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
