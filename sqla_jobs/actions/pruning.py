"""The deletion of old rows: ended jobs, runs whose job is gone, lines of the audit log, and ticks."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from operator import sub
from typing import Any, NamedTuple, Protocol

import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqla_jobs.database.refusals import in_parts
from sqla_jobs.models.mapping import Models
from sqla_jobs.queries.delete_jobs import Place, Removal
from sqla_jobs.queries.graphs import Graphs, find_empty_batches, is_alone, remove_batches
from sqla_jobs.queries.leftovers import Leftovers
from sqla_jobs.rules.retention import AUDIT, TICKS, Rule

BATCH = 1000
LOOKED_AT = 10_000
"""The maximum number of runs, or of ended jobs, that one statement searches."""

Transaction = Callable[[], AbstractContextManager[Session]]
"""A function that begins a transaction or a savepoint."""


class Batch(NamedTuple):
    """Ids of rows that are old enough.

    `beyond(deleted)` is the cursor after these rows; `beyond` is None if there are no more rows.
    """

    ids: Sequence[int]
    beyond: Callable[[int], Any] | None


def _at(last: Any, gone: int) -> Any:
    """Return the last row of a search as the cursor, whatever the number of deleted rows."""
    return last


class Old(Protocol):
    """A kind of old rows to delete. `name` is the word for one such row in the log."""

    @property
    def name(self) -> str: ...
    def find(self, session: Session, cursor: Any) -> Batch:
        """Return the next rows after `cursor`, or the first rows if it is None."""
        ...

    def remove(self, session: Session, ids: Sequence[int]) -> int:
        """Delete the rows with these ids that are still old enough. Return the number of deleted rows."""
        ...


@dataclass(frozen=True, slots=True)
class LoneJobs:
    """Jobs of no graph and no batch that ended in `state` over `older_than` seconds ago, unless a row refers to them.

    They meet `condition`. The cursor is the number of jobs that stay. Many jobs may have ended at one instant, so a
    keyset cursor would need an index that also orders jobs by id.
    """

    removal: Removal
    graphs: Graphs
    state: str
    older_than: float
    references: Sequence[sa.ColumnElement[bool]]
    condition: sa.ColumnElement[bool]

    @property
    def name(self) -> str:
        return f"{self.state} job"

    def find(self, session: Session, cursor: Any) -> Batch:
        ended = self.removal.ended(self.state, self.older_than)
        conditions = [*ended, self.condition, is_alone(self.removal.models)]
        stay = cursor or 0
        ids = self.removal.find(session, conditions, self.references, offset=stay, limit=BATCH)
        return Batch(ids, partial(sub, stay + len(ids)) if len(ids) == BATCH else None)

    def remove(self, session: Session, ids: Sequence[int]) -> int:
        conditions = [is_alone(self.removal.models), self.removal.keeps_none_waiting()]
        return len(self.removal.prune(session, ids, conditions, self.references, self.graphs, are_alone=True))


@dataclass(frozen=True, slots=True)
class SomeJobs:
    """Jobs that meet `condition` and ended in `state` over `older_than` seconds ago, with their graphs.

    The cursor is a `Place`. A search finds jobs by state and time, and so also reads other jobs. Each search therefore
    continues where the last one ended. A job that was skipped, for example because it was locked, is found by a later
    search from the start. A graph is found with the last of its jobs, whatever their states.
    """

    removal: Removal
    graphs: Graphs
    state: str
    older_than: float
    references: Sequence[sa.ColumnElement[bool]]
    condition: sa.ColumnElement[bool]

    @property
    def name(self) -> str:
        return f"{self.state} job"

    def find(self, session: Session, cursor: Place | None) -> Batch:
        ids, beyond = self.removal.find_among(
            session, self.state, self.older_than, self.condition, beyond=cursor, looked_at=LOOKED_AT, limit=BATCH
        )
        return Batch(self.graphs.whole(session, ids), None if beyond is None else partial(_at, beyond))

    def remove(self, session: Session, ids: Sequence[int]) -> int:
        conditions = [self.removal.keeps_none_waiting()]
        return len(self.removal.prune(session, ids, conditions, self.references, self.graphs))


def old_jobs(
    removal: Removal, graphs: Graphs, rule: Rule, references: Sequence[sa.ColumnElement[bool]]
) -> tuple[LoneJobs | None, SomeJobs]:
    """Return the jobs to which a rule applies: those of no graph, unless the rule is about tasks, and the others."""
    kept, is_under = (removal, graphs, rule.state, rule.kept, references), removal.is_under(rule)
    if rule.only or rule.others:
        return None, SomeJobs(*kept, is_under)
    return LoneJobs(*kept, is_under), SomeJobs(*kept, is_under & ~is_alone(removal.models))


@dataclass(frozen=True, slots=True)
class OwnJobs:
    """Jobs that are past a retention of their own, with their graphs. The cursor is an id."""

    removal: Removal
    graphs: Graphs
    references: Sequence[sa.ColumnElement[bool]]
    name: str = "job"

    def find(self, session: Session, cursor: Any) -> Batch:
        ids = self.removal.find_past_own(session, after=cursor or 0, limit=BATCH)
        return Batch(self.graphs.whole(session, ids), partial(_at, ids[-1]) if len(ids) == BATCH else None)

    def remove(self, session: Session, ids: Sequence[int]) -> int:
        conditions = [self.removal.keeps_none_waiting()]
        return len(self.removal.prune(session, ids, conditions, self.references, self.graphs))


@dataclass(frozen=True, slots=True)
class OrphanedRuns:
    """Runs that ended over `older_than` seconds ago and whose job the application has deleted. The cursor is an id."""

    leftovers: Leftovers
    older_than: float
    name: str = "orphaned run"

    def find(self, session: Session, cursor: Any) -> Batch:
        found = self.leftovers.find_orphans(session, after=cursor or 0, older_than=self.older_than, limit=LOOKED_AT)
        return Batch(found.ids, None if found.last is None else partial(_at, found.last))

    def remove(self, session: Session, ids: Sequence[int]) -> int:
        return self.leftovers.remove_orphans(session, ids)


@dataclass(frozen=True, slots=True)
class OldRows:
    """Rows of the audit log, or of ticks, that are over `older_than` seconds old. The cursor is an id."""

    leftovers: Leftovers
    noun: str
    older_than: float

    @property
    def name(self) -> str:
        return {AUDIT: "audit line", TICKS: "tick"}[self.noun]

    def find(self, session: Session, cursor: Any) -> Batch:
        found = self.leftovers.find_old(session, self.noun, after=cursor or 0, older_than=self.older_than, limit=BATCH)
        return Batch(found.ids, partial(_at, found.last) if len(found.ids) == BATCH else None)

    def remove(self, session: Session, ids: Sequence[int]) -> int:
        return self.leftovers.remove_old(session, self.noun, ids)


@dataclass(frozen=True, slots=True)
class EmptyBatches:
    """Batches to which no job belongs, and after which no job was enqueued."""

    models: Models[Any]
    older_than: float
    name: str = "empty batch"

    def find(self, session: Session, cursor: Any) -> Batch:
        return Batch(find_empty_batches(session, self.models, older_than=self.older_than, limit=BATCH), None)

    def remove(self, session: Session, ids: Sequence[int]) -> int:
        return remove_batches(session, self.models, [*ids])


def prune(
    old: Old,
    transaction: Transaction,
    refused: Callable[[int, Exception], None],
    *,
    cursor: Any = None,
    passing_over: Container[int] = (),
) -> Iterator[tuple[int, Any]]:
    """Delete old rows batch by batch.

    After each batch, yield the number of deleted rows and the cursor after the batch. The caller may stop at any point.
    If the server refuses to delete a row, the row stays, and `refused` is called with its id and the error. The other
    rows of its batch are deleted.
    """

    def remove(ids: Sequence[int]) -> int:
        with transaction() as session:
            return old.remove(session, ids)

    while True:
        with transaction() as session:
            ids, beyond = old.find(session, cursor)
        left = [one for one in ids if one not in passing_over]
        gone: int = sum(
            count
            for start in range(0, len(left), BATCH)
            for count in in_parts(left[start : start + BATCH], remove, refused)
        )
        cursor = None if beyond is None else beyond(gone)
        yield gone, cursor
        if cursor is None:
            return
