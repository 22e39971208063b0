"""Sessions in which pages read: short, read-only, and not able to hang."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from sqlalchemy import ClauseElement, Executable, Select, func, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session

from sqla_jobs.jobs import Jobs
from sqla_jobs.rules.wording import Count

PATIENCE = 5.0
"""Seconds that one statement of a page may take."""
COUNTED = 5_000
"""Rows that are counted one by one; of more than that the planner's estimate is shown."""

_SETTINGS = {
    "transaction_read_only": "on",
    "statement_timeout": f"{PATIENCE:.0f}s",
    "jit": "off",  # compiling takes longer than any page may
    "plan_cache_mode": "force_custom_plan",  # a generic plan could not use the indexes on one state
}


@contextmanager
def reading(jobs: Jobs[Any]) -> Generator[tuple[Session, datetime]]:
    """A session that can only read, and the server's time. Raises `ConfigurationError` where none is bound."""
    with jobs.binding().session() as session:
        said = [func.set_config(name, value, True) for name, value in _SETTINGS.items()]
        on_jobs = {"mapper": jobs.Job}
        row = session.execute(select(func.clock_timestamp(), *said), bind_arguments=on_jobs).one()
        try:
            yield session, row[0]
        finally:
            session.rollback()


class _Explain(Executable, ClauseElement):
    """EXPLAIN of a query; nothing is run."""

    inherit_cache = False

    def __init__(self, query: Select[Any]) -> None:
        self.query = query


@compiles(_Explain)
def _compile(element: _Explain, compiler: Any, **options: Any) -> str:
    return f"EXPLAIN (FORMAT JSON) {compiler.process(element.query, **options)}"


def counted(session: Session, jobs: Jobs[Any], query: Select[Any]) -> Count:
    """How many rows `query` has: exact up to `COUNTED`, else as the planner estimates it.

    The query says the order of an index: without one the planner would look for the first few thousand
    by reading the table from its start.
    """
    on_jobs = {"mapper": jobs.Job}
    plan = session.connection(bind_arguments=on_jobs).execute(_Explain(query)).scalar_one()
    estimate = int(plan[0]["Plan"]["Plan Rows"])
    if estimate > 2 * COUNTED:
        return Count(estimate, is_exact=False)
    bounded = select(func.count()).select_from(query.limit(COUNTED + 1).subquery())
    found = session.execute(bounded, bind_arguments=on_jobs).scalar_one()
    if found <= COUNTED:
        return Count(found)
    return Count(estimate, is_exact=False) if estimate > COUNTED else Count(COUNTED, is_least=True)
