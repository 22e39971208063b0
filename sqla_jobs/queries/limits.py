"""The rows of limits: the numbers declared in code, and the numbers that operators set instead."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Set
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from sqla_jobs.errors import RowHeld
from sqla_jobs.models.columns import LimitMixin
from sqla_jobs.models.mapping import Models
from sqla_jobs.models.types import JobState
from sqla_jobs.queries.expressions import row_held, waiting_at_most
from sqla_jobs.rules.limits import HASHED_BY, split_between

NUMBERS = ("running", "rate", "per")
_PATIENCE = 0.1
"""The maximum wait for another transaction that inserts the same row, such as that of a worker that also starts."""


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
    of_each_key = sa.func.substr(job.ordered_by, 1, sa.func.strpos(job.ordered_by, "="))
    holds = sa.exists().where(limit.gate.in_([job.ordered_by, of_each_key]), limit.hold)
    return sa.and_(job.state == JobState.failed, job.ordered_by.is_not(None), holds)


class Stored(NamedTuple):
    """The result of storing declared limits."""

    split: Mapping[str, str] = MappingProxyType({})
    """The rows whose keys other programs spell differently, each with a description of the difference."""
    left: frozenset[str] = frozenset()
    """The rows that are not stored or retired yet, because another transaction has locked them."""
    held_up: frozenset[str] = frozenset()
    """The tasks of those rows that no code had declared before. Nothing limits these tasks yet."""
    has_rows: bool = False
    """True if the table of limits has rows."""


def declare(session: Session, models: Models[Any], known: Collection[str], declared: Iterable[DeclaredLimit]) -> Stored:
    """Store the declared limits of this program's tasks, in the caller's transaction.

    Keep numbers that an operator has set. If a row also names tasks of other programs, keep them. Leave locked rows as
    they are, and wait only briefly for another transaction that inserts the same row.
    """
    wanted = {one.gate: one for one in sorted(declared, key=lambda one: one.gate)}
    limit: Any = models.Limit
    found = session.execute(sa.select(limit.gate, limit.declared.is_not(None)).where(limit.gate.in_(wanted)))
    seen = {row[0]: bool(row[1]) for row in found}
    left = {gate for gate, one in wanted.items() if gate not in seen and not _insert(session, models, one)}
    names_one = limit.tasks.op("&&")(sa.cast([*known], sa.ARRAY(sa.Text)))
    mine = sa.or_(limit.gate.in_(wanted), sa.and_(limit.declared.is_not(None), names_one))
    free = sa.select(limit).where(mine).with_for_update(skip_locked=True).execution_options(populate_existing=True)
    rows = session.scalars(free).all()
    left |= set(session.scalars(sa.select(limit.gate).where(mine))) - {row.gate for row in rows}
    split: dict[str, str] = {}
    for row in rows:
        others = set(row.tasks) - set(known)
        if (said := wanted.get(row.gate)) is not None:
            _bring_up_to_date(row, said, others)
            if (how := split_between(row.declared, row.tasks)) is not None:
                split[row.gate] = how
        elif others != set(row.tasks):
            _retire(row, sorted(others))
    session.flush()
    held_up = {task for gate in left & wanted.keys() if not seen.get(gate) for task in wanted[gate].tasks}
    has_rows = session.scalars(sa.select(limit.gate).limit(1)).first() is not None
    return Stored(split, frozenset(left), frozenset(held_up), has_rows)


def set_by_operators(models: Models[Any], gates: Collection[str]) -> Any:
    """Return a query that locks the rows of these gates that an operator has set: workers may declare other numbers."""
    limit: Any = models.Limit
    rows = sa.select(limit).where(limit.gate.in_(gates), limit.set_at.is_not(None)).order_by(limit.gate)
    return rows.with_for_update().execution_options(populate_existing=True)


def _insert(session: Session, models: Models[Any], one: DeclaredLimit) -> bool:
    """Insert a row. Return False if another transaction that inserts the same row does not end soon."""
    numbers = {name: one.values[name] for name in (*NUMBERS, "hold")}
    values = {"gate": one.gate, **numbers, "tasks": sorted(one.tasks), "declared": one.stored()}
    try:
        with row_held(), session.begin_nested():
            session.execute(sa.text(f"SELECT {waiting_at_most(_PATIENCE)}"))
            session.execute(insert(models.Limit).values(values).on_conflict_do_nothing(index_elements=["gate"]))
    except RowHeld:
        return False
    return True


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
    return sa.func.clock_timestamp()
