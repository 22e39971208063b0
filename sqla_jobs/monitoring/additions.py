"""Findings about an application's own foreign keys, policies and triggers on the jobs' tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import TextClause, text
from sqlalchemy.orm import Session

from sqla_jobs.jobs import Jobs
from sqla_jobs.monitoring.finding import Finding, ask, table_names, warning, well
from sqla_jobs.queries.delete_jobs import Reference, Removal
from sqla_jobs.rules.retention import seconds_kept
from sqla_jobs.rules.wording import Count, plural

_UNINDEXED = text(
    """
    SELECT reference.conrelid::regclass::text, attribute.attname
    FROM pg_constraint AS reference
    JOIN pg_attribute AS attribute
      ON attribute.attrelid = reference.conrelid AND attribute.attnum = reference.conkey[1]
    WHERE reference.confrelid = ANY(CAST(:tables AS regclass[])) AND reference.contype = 'f'
      AND NOT EXISTS (
        SELECT FROM pg_index
        WHERE indrelid = reference.conrelid AND indkey[0] = ANY(reference.conkey) AND indisvalid
      )
    ORDER BY 1, 2
    """
)

_MANY = 1_000
"""A foreign key causes a warning if it keeps this many jobs past their retention. Some are kept on purpose."""
_COUNTED = 100_000
"""The maximum number of jobs counted in each state."""


def foreign_keys(session: Session, jobs: Jobs[Any]) -> Iterator[Finding]:
    """Find foreign keys to the jobs table whose own columns have no index."""
    rows = _ask(session, jobs, _UNINDEXED, ["jobs"])
    if not rows:
        yield well("foreign keys to jobs", "all have an index, or there is none")
    for table, column in rows:
        yield warning(
            "foreign keys to jobs",
            f"{table}.{column} has no index",
            f"pruning reads the whole table for each job: CREATE INDEX CONCURRENTLY ON {table} ({column})",
        )


def kept_jobs(session: Session, jobs: Jobs[Any]) -> Iterator[Finding]:
    """Find foreign keys that keep many jobs from being pruned. Assumes the default retention."""
    removal = Removal(jobs.models)
    numbers = Counter[Reference]()
    for state, seconds in seconds_kept({"audit": None, "ticks": None}).items():
        numbers.update(dict(removal.kept(session, removal.ended(state, seconds), most=_COUNTED)))
    for key, number in numbers.items():
        if number >= _MANY:
            count = Count(number, is_least=number >= _COUNTED)
            found = f"rows of {key} keep {plural(count, 'job')} from being pruned"
            yield warning("foreign keys to jobs", found, key.remedy)


_SECURED = text(
    """
    SELECT oid::regclass::text, row_security_active(oid) FROM pg_class
    WHERE oid = ANY(CAST(:tables AS regclass[])) AND relrowsecurity ORDER BY 1
    """
)


def row_level_security(session: Session, jobs: Jobs[Any]) -> Iterator[Finding]:
    """Find tables with row-level security."""
    for table, applies_to_us in _ask(session, jobs, _SECURED):
        role = "it applies to this role" if applies_to_us else "this role is exempt"
        yield warning(
            "row level security",
            f"enabled on {table}; {role}",
            "workers never claim, rescue or prune jobs that a policy hides from their role, and log no error. Give "
            "workers and clocks a role with BYPASSRLS, or "
            f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY",
        )


_TRIGGERS = text(
    """
    SELECT tgrelid::regclass::text, quote_ident(tgname), tgfoid::regproc::text FROM pg_trigger
    WHERE tgrelid = ANY(CAST(:tables AS regclass[])) AND NOT tgisinternal AND tgenabled <> 'D'
      AND tgtype & CAST(:before_or_instead AS int2) <> 0
    ORDER BY 1, 2
    """
)
_BEFORE, _INSTEAD = 2, 64
"""Bits of `pg_trigger.tgtype`."""


def triggers(session: Session, jobs: Jobs[Any]) -> Iterator[Finding]:
    """Find BEFORE and INSTEAD OF triggers, which can refuse or change writes of workers. The library creates none."""
    for table, name, function in _ask(session, jobs, _TRIGGERS, before_or_instead=_BEFORE | _INSTEAD):
        yield warning(
            "triggers",
            f"trigger {name} of {table} calls {function} before rows are written",
            "if it raises or returns NULL, a job is not claimed, stored or pruned. Let it return NEW (OLD for a "
            f"DELETE) for each write of a worker; or DROP TRIGGER {name} ON {table}",
        )


def _ask(
    session: Session, jobs: Jobs[Any], question: TextClause, nouns: Sequence[str] = (), **values: int
) -> list[Any]:
    """Run a query about the tables in `nouns`; if `nouns` is empty, about all tables."""
    names = table_names(session, jobs, nouns or jobs.models.tables)
    return [*ask(session, jobs, question, tables=names, **values)]
