"""The rows of limits: the numbers declared in code, and the numbers that operators set instead."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any

from sqlalchemy import and_, exists, func, or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from sqla_jobs.models.columns import LimitMixin
from sqla_jobs.models.mapping import Models
from sqla_jobs.models.types import JobState
from sqla_jobs.rules.limits import HASHED_BY, split_between

NUMBERS = ("running", "rate", "per")


@dataclass(frozen=True)
class DeclaredLimit:
    """One row of limits, as declared in code."""

    gate: str
    values: Mapping[str, Any]
    """The row's `running`, `rate`, `per` and `hold`, and its `burst` if it has one."""
    tasks: frozenset[str]
    """The names of this program's tasks that the row limits."""
    is_hashed: bool
    """True if these tasks hash the row's keys."""

    def stored(self, hashed_by_others: Collection[str] = ()) -> dict[str, Any]:
        """Return the value for the column `declared`."""
        hashed_by = sorted({*hashed_by_others, *(self.tasks if self.is_hashed else ())})
        return {**self.values, **({HASHED_BY: hashed_by} if hashed_by else {})}


def keeps_others_waiting(models: Models[Any]) -> Any:
    """Return the condition that a failed job keeps its ordered key until a person retries, cancels or deletes it."""
    job, limit = models.Job, models.Limit
    of_each_key = func.substr(job.ordered_by, 1, func.strpos(job.ordered_by, "="))
    holds = exists().where(limit.gate.in_([job.ordered_by, of_each_key]), limit.hold)
    return and_(job.state == JobState.failed, job.ordered_by.is_not(None), holds)


def declare(
    session: Session, models: Models[Any], known: Collection[str], declared: Iterable[DeclaredLimit]
) -> dict[str, str]:
    """Store the declared limits of this program's tasks, in the caller's transaction.

    Keep numbers that an operator has set. If a row also names tasks of other programs, keep them. If other programs
    spell the keys of a row differently, return a description of the difference for that row.
    """
    split: dict[str, str] = {}
    wanted = {one.gate: one for one in sorted(declared, key=lambda one: one.gate)}
    for one in wanted.values():
        _insert(session, models, one)
    limit: Any = models.Limit
    rows = session.scalars(
        select(limit)
        .where(or_(limit.gate.in_(wanted), limit.declared.is_not(None)))
        .order_by(limit.gate)
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    for row in rows:
        others = set(row.tasks) - set(known)
        if (said := wanted.get(row.gate)) is not None:
            _bring_up_to_date(row, said, others)
            if (found := split_between(row.declared, row.tasks)) is not None:
                split[row.gate] = found
        elif others != set(row.tasks):
            _retire(row, sorted(others))
    session.flush()
    return split


def set_by_operators(models: Models[Any], gates: Collection[str]) -> Any:
    """Return a query that locks the rows of these gates that an operator has set: workers may declare other numbers."""
    limit: Any = models.Limit
    rows = select(limit).where(limit.gate.in_(gates), limit.set_at.is_not(None)).order_by(limit.gate)
    return rows.with_for_update().execution_options(populate_existing=True)


def _insert(session: Session, models: Models[Any], one: DeclaredLimit) -> None:
    numbers = {name: one.values[name] for name in (*NUMBERS, "hold")}
    values = {"gate": one.gate, **numbers, "tasks": sorted(one.tasks), "declared": one.stored()}
    session.execute(insert(models.Limit).values(values).on_conflict_do_nothing(index_elements=["gate"]))


def _bring_up_to_date(row: LimitMixin, one: DeclaredLimit, others: Set[str]) -> None:
    """Update the numbers and tasks stored in a row. `others` are other programs' tasks."""
    tasks = sorted(others | one.tasks)
    declared = one.stored(others & {*(row.declared or {}).get(HASHED_BY, ())})
    if row.declared == declared and row.tasks == tasks:
        return
    row.declared, row.hold, row.tasks, row.changed_at = declared, one.values["hold"], tasks, _now()
    if row.set_at is None:
        row.running, row.rate, row.per = (one.values[name] for name in NUMBERS)


def _retire(row: LimitMixin, tasks: list[str]) -> None:
    """Retire a row that no known code declares.

    An operator's limit on a whole task stays: it needs no key from code.
    """
    row.changed_at = _now()
    if tasks:
        row.tasks = tasks
        return
    row.declared, row.hold = None, False
    if row.set_at is None or "=" in row.gate:
        row.tasks, row.set_at = tasks, None
        row.running = row.rate = row.per = None


def _now() -> Any:
    return func.clock_timestamp()
