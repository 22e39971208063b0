"""Storage of attempts' ends, even if the server refuses one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import sqlalchemy as sa

from sqla_jobs.database.refusals import blames_a_row, in_parts, reason
from sqla_jobs.queries import Queries
from sqla_jobs.queries.values import RunEnd
from sqla_jobs.rules.outcomes import MAX_MESSAGE, Failure, Outcome, storable
from sqla_jobs.runtime.set_aside import SetAside

RESCUED = Outcome.lost(Failure("Lost", "its process was declared dead, and another process recorded that"))
_GONE = Outcome.lost(Failure("Lost", "another process had the job before its end could be stored"))
_REPLACED = Outcome.failed(Failure("UnstorableOutcome", "the outcome was refused by the server"))


def store(
    engine: sa.Engine,
    queries: Queries,
    ends: Sequence[RunEnd],
    set_aside: SetAside,
    *,
    before_each: Callable[[], None] = lambda: None,
) -> dict[int, str]:
    """Store these ends. Return their fates, by run id. An end that is stored unchanged has no fate.

    A fate is "replaced", "refused", or a value that `Queries.finish` returns. If the server refuses an end, a failure
    that says so is stored instead ("replaced"). If the server refuses the failure too, the job is set aside
    ("refused"). All other ends are stored. After an error halfway through, call this again with all ends. `before_each`
    is called before each transaction: many refused ends need many transactions.
    """
    fates: dict[int, str] = {}

    def step(part: Sequence[RunEnd]) -> None:
        before_each()
        with engine.begin() as connection:
            fates.update(queries.finish(connection, part))

    def store_failure(end: RunEnd, error: Exception) -> None:
        if (fate := _store_failure(engine, queries, end, error, set_aside)) is not None:
            fates[end.lease.run_id] = fate

    in_parts(ends, step, store_failure)
    return fates


def as_stored(end: RunEnd, fate: str | None) -> RunEnd:
    """Return the end with the outcome that its run has in the database: `lost` if the lease was no longer valid."""
    match fate:
        case "replaced":
            return end._replace(outcome=_REPLACED)
        case "cancelled" if end.outcome.failure is not None:
            return end._replace(outcome=Outcome.cancelled(end.outcome.failure))
        case "lost" | "rescued" if end.outcome.kind != "released":
            return end._replace(outcome=_GONE if fate == "lost" else RESCUED)
        case _:
            return end


def _store_failure(
    engine: sa.Engine, queries: Queries, end: RunEnd, error: Exception, set_aside: SetAside
) -> str | None:
    why = storable(reason(error), MAX_MESSAGE).encode("ascii", "replace").decode()
    failure = Outcome.failed(Failure("UnstorableOutcome", f"the outcome was refused by the server: {why}"))
    tries = [end] if end.outcome.kind == "released" else [end, RunEnd(end.lease, failure, end.started, end.finished)]
    for one in tries:  # the same end is tried again first, since `finish_any` may give its run another id
        try:
            with engine.begin() as connection:
                fate = queries.finish_any(connection, [one]).get(end.lease.run_id)
        except Exception as again:
            if not blames_a_row(again):
                raise
        else:
            return "replaced" if fate is None and one is not end else fate
    set_aside.refused("its end", end.lease.job_id, error)
    return "refused"
