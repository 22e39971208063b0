"""The follow-up of a job that failed for good, inserted by the statement that stores the failure."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Integer, SmallInteger, Text, case, cast, func, insert, literal_column, select

from sqla_jobs.models.types import MAX_ATTEMPTS
from sqla_jobs.queries.expressions import Tables, array_of
from sqla_jobs.rules.limits import MOST_GATES

DELIVERED_WITHIN = 10.0
"""If a failed attempt's process does not call its handlers within these seconds, another process calls them."""


def follow_ups(tables: Tables, changed: Any) -> Any:
    """Return a CTE that inserts the job of `on_failure` for each failed job in `changed`.

    The new job's argument is the id of the failed job. `changed` is a CTE with the columns `id`, `state` and
    `on_failure`. A value from elsewhere must not make the failure impossible to store: without a task there is no new
    job, and numbers out of range and gates that are no list are left out.
    """
    follows = changed.c.on_failure

    def number(name: str, pattern: str) -> Any:
        return func.substring(follows[name].astext, literal_column(f"'{pattern}'", Text))

    most_lost, most_attempts = number("max_lost", "^[1-9][0-9]{0,3}$"), number("max_attempts", "^[1-9][0-9]{0,8}$")
    priority = cast(number("priority", "^(-?[0-9]|-?10)$"), SmallInteger)
    found = func.jsonb_extract_path(follows, literal_column("'gates'", Text))
    listed = case((func.jsonb_typeof(found) == literal_column("'array'", Text), found))
    gate = func.jsonb_array_elements_text(listed, type_=Text).column_valued("gate")
    gates = array_of(select(gate).where(gate.is_not(None)).limit(MOST_GATES))
    argument = func.coalesce(follows["argument"].astext, literal_column("'job_id'", Text))
    rows = select(
        follows["task"].astext,
        func.coalesce(follows["queue"].astext, literal_column("'default'", Text)),
        func.coalesce(priority, literal_column("0", SmallInteger)),
        func.coalesce(cast(most_attempts, Integer), literal_column(str(MAX_ATTEMPTS), Integer)),
        cast(most_lost, SmallInteger),
        func.jsonb_build_object(argument, changed.c.id),
        literal_column("'queued'", Text),
        func.nullif(gates, literal_column("'{}'::text[]")),
    ).where(changed.c.state == literal_column("'failed'"), follows["task"].astext.is_not(None))
    columns = ["task", "queue", "priority", "max_attempts", "max_lost", "args", "state", "gates"]
    inserted = insert(tables.jobs).from_select(columns, rows, include_defaults=False)
    return inserted.returning(tables.jobs.c.queue, tables.jobs.c.gates).cte("follow_ups")
