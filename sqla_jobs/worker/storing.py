"""Storing one end that the server refused together with others."""

from __future__ import annotations

import logging

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from sqla_jobs.outcomes import MAX_MESSAGE, Failed, Failure, Released, storable
from sqla_jobs.queries import Finish, Queries
from sqla_jobs.refusals import blames_a_row, reason

log = logging.getLogger("sqla_jobs.worker")


def store_one(engine: Engine, queries: Queries, end: Finish) -> str | None:
    """Store this end; where the server refuses it in every form, a failure that says so, in plain words.

    Returns what became of it otherwise: "refused", or the fates that `Queries.finish` knows.
    """
    try:
        return _store(engine, queries, end)
    except DBAPIError as error:
        if not blames_a_row(error):
            raise
        why = storable(reason(error), MAX_MESSAGE).encode("ascii", "replace").decode()
    if not isinstance(end.outcome, Released):
        failure = Failure("UnstorableOutcome", f"the outcome was refused by the server: {why}")
        try:
            return _store(engine, queries, Finish(end.lease, Failed(failure), end.started, end.finished))
        except DBAPIError as error:
            if not blames_a_row(error):
                raise
    log.error("the end of job %s is refused by the server, and tried again later: %s", end.lease.job_id, why)
    return "refused"


def _store(engine: Engine, queries: Queries, end: Finish) -> str | None:
    with engine.begin() as connection:
        return queries.finish_any(connection, [end]).get(end.lease.run_id)
