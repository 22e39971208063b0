"""Storing the ends of attempts, also where the server refuses one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqla_jobs.calls.statements import Calls, Transactions
from sqla_jobs.calls.values import RunEnd
from sqla_jobs.database.refusals import blames_a_row, in_parts, reason
from sqla_jobs.rules.outcomes import MAX_MESSAGE, Failure, Outcome, storable
from sqla_jobs.runtime.set_aside import SetAside

RESCUED = Outcome.lost(Failure("Lost", "its process was taken for dead, and another one has recorded and counted that"))
_GONE = Outcome.lost(Failure("Lost", "somebody else had the job before its end could be stored"))
_REPLACED = Outcome.failed(Failure("UnstorableOutcome", "the outcome was refused by the server"))


def store(
    engine: Transactions,
    queries: Calls,
    ends: Sequence[RunEnd],
    set_aside: SetAside,
    *,
    before_each: Callable[[], None] = lambda: None,
) -> dict[int, str]:
    """Store these ends. Returns by run id what became of those that are not stored as they are.

    These are the fates of `Queries.finish`, "replaced" and "refused". An end that the server refuses is replaced by a
    failure that says so, and set aside if that is refused too; the others are stored. After an error in the
    middle it may be called again with all of them. `before_each` is called before each transaction: many that
    are refused take many.
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
    """The end with the outcome that its run has; with its lease gone it is lost, whatever the task came to."""
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
    engine: Transactions, queries: Calls, end: RunEnd, error: Exception, set_aside: SetAside
) -> str | None:
    why = storable(reason(error), MAX_MESSAGE).encode("ascii", "replace").decode()
    failure = Outcome.failed(Failure("UnstorableOutcome", f"the outcome was refused by the server: {why}"))
    tries = [end] if end.outcome.kind == "released" else [end, RunEnd(end.lease, failure, end.started, end.finished)]
    for one in tries:  # the same end once more, since its run may take another id
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
