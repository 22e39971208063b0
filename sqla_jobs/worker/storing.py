"""Storing one end that the server refused together with others."""

from __future__ import annotations

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from sqla_jobs.outcomes import MAX_MESSAGE, Failed, Failure, Released, storable
from sqla_jobs.queries import Finish, Queries
from sqla_jobs.refusals import blames_a_row, reason
from sqla_jobs.worker.set_aside import SetAside


def store_one(engine: Engine, queries: Queries, end: Finish, set_aside: SetAside) -> str | None:
    """Store this end. If the server refuses it, store a failure that says so.

    Returns None if one of them is stored, else "refused", or one of the fates of `Queries.finish`.
    """
    try:
        return _store(engine, queries, end)
    except DBAPIError as error:
        if not blames_a_row(error):
            raise
        refusal = error
    if not isinstance(end.outcome, Released):
        why = storable(reason(refusal), MAX_MESSAGE).encode("ascii", "replace").decode()
        failure = Failure("UnstorableOutcome", f"the outcome was refused by the server: {why}")
        try:
            return _store(engine, queries, Finish(end.lease, Failed(failure), end.started, end.finished))
        except DBAPIError as error:
            if not blames_a_row(error):
                raise
    set_aside.add("its end", end.lease.job_id, refusal)
    return "refused"


def _store(engine: Engine, queries: Queries, end: Finish) -> str | None:
    with engine.begin() as connection:
        return queries.finish_any(connection, [end]).get(end.lease.run_id)
