"""Sessions for pages: short, read-only and with a timeout."""

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
"""The timeout of each statement of a page, in seconds."""
COUNTED = 5_000
"""The maximum number of rows that are counted exactly. Above that number, the planner's estimate is shown."""

_SETTINGS = {
    "transaction_read_only": "on",
    "statement_timeout": f"{PATIENCE:.0f}s",
    "jit": "off",  # compiling would take longer than a page may take
    "plan_cache_mode": "force_custom_plan",  # a generic plan could not use the partial indexes of one state
}


@contextmanager
def reading(jobs: Jobs[Any]) -> Generator[tuple[Session, datetime]]:
    """Yield a read-only session and the server's time. Raises `ConfigurationError` without a bind."""
    with jobs.binding().session() as session:
        said = [func.set_config(name, value, True) for name, value in _SETTINGS.items()]
        on_jobs = {"mapper": jobs.Job}
        row = session.execute(select(func.clock_timestamp(), *said), bind_arguments=on_jobs).one()
        try:
            yield session, row[0]
        finally:
            session.rollback()


class _Explain(Executable, ClauseElement):
    """An EXPLAIN of a query, which does not run the query."""

    inherit_cache = False

    def __init__(self, query: Select[Any]) -> None:
        self.query = query


@compiles(_Explain)
def _compile(element: _Explain, compiler: Any, **options: Any) -> str:
    return f"EXPLAIN (FORMAT JSON) {compiler.process(element.query, **options)}"


def counted(session: Session, jobs: Jobs[Any], query: Select[Any]) -> Count:
    """Count the rows of `query`: exactly up to `COUNTED`, else by the planner's estimate.

    The query must have an index's order: without an order, the planner would read the table from its start to find
    the first few thousand rows.
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
