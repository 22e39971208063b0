"""The pruner, which deletes rows older than their retention, in a thread of its own."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from sqla_jobs.actions.pruning import EmptyBatches, Old, OldRows, OrphanedRuns, OwnJobs, SomeJobs, old_jobs, prune
from sqla_jobs.database.refusals import reason, warn
from sqla_jobs.models.mapping import Models
from sqla_jobs.queries import Queries
from sqla_jobs.queries.delete_jobs import Place, Removal
from sqla_jobs.queries.graphs import Graphs
from sqla_jobs.queries.leftovers import Leftovers
from sqla_jobs.rules.every import Every
from sqla_jobs.rules.retention import AUDIT, TICKS, Rule
from sqla_jobs.rules.wording import plural
from sqla_jobs.runtime.loop import Loop

log: logging.Logger = logging.getLogger("sqla_jobs.worker")

_EVERY = 60.0
"""The average time between looks, in seconds."""
_REST, _LONGEST_REST = 0.25, 0.1
"""The pause after each batch, so that others can use the server: a share of the time that it took, at most so long."""
_ORPHANED_FOR = 86400.0
"""A run without a job is kept for this many seconds after its end: a restore may insert runs before their jobs."""
_EMPTY_FOR = 30 * 86400.0
"""Seconds after which a batch without jobs is deleted, whether or not it ever had any."""
_MOST_REFUSED = 100
"""After this many refused deletions of one kind, the rest waits until the pruner looks again."""
_STEPS = 100
"""The most searches for the jobs of graphs, or of some tasks, by one rule. When the pruner looks again, it continues
there."""
_FROM_THE_BEGINNING = 86400.0
"""After this many seconds, these searches look at all jobs again: some may have been locked or referenced."""
_LIMIT_IDLING = sa.text("SELECT set_config('idle_in_transaction_session_timeout', '10000', true)")
"""Ends a transaction whose pruner has been frozen for ten seconds, since the transaction holds row locks."""
_NOT_ALLOWED = "42501"
_TRY_AGAIN = 3600.0
"""Seconds after which refused rows are tried again, since the cause may be gone, and old starts are deleted."""


class Pruner:
    """Deletes, in batches, the rows that are older than their retention.

    `retention` maps "audit" and "ticks" to seconds, and `rules` apply to jobs. Several pruners can work simultaneously:
    none waits for a row that another has locked. A row that the server refuses to delete is skipped, and logged once.
    """

    def __init__(
        self, engine: sa.Engine, models: Models[Any], retention: Mapping[str, float], rules: Sequence[Rule]
    ) -> None:
        self._engine = engine.execution_options(isolation_level="READ COMMITTED")
        self._models = models
        self._removal = Removal(models)
        self._leftovers = Leftovers(models)
        self._queries = Queries(models)
        self._retention = {name: kept for name, kept in retention.items() if name in (AUDIT, TICKS)}
        self._rules = rules
        self._looked_at: dict[Rule, Place] = {}
        """For each rule, the place where the search for jobs of graphs or tasks continues."""
        self._forgetting = Every(_FROM_THE_BEGINNING, first_in=_FROM_THE_BEGINNING)
        self._refused: set[tuple[str, int]] = set()
        self._logged: set[tuple[str, int]] = set()
        self._trying_again = Every(_TRY_AGAIN)
        self._next_run: int | None = None
        """The search for runs without a job continues after this run id."""
        self._loop = Loop("pruning", self.step, name="sqla_jobs-pruner")

    def start(self) -> None:
        """Start, and look immediately."""
        self._loop.start()

    def stop(self) -> None:
        """Stop after the batch in progress."""
        self._loop.stop(1.0)

    def step(self) -> float:
        """Delete the rows that are old by now. Return when to look again."""
        if self._trying_again.is_over():
            self._refused.clear()
            self._where_allowed("start", self._forget_starts)
        with self._transaction() as session:
            references = self._removal.references(session)
        if self._forgetting.is_over():
            self._looked_at.clear()
        for name, kept in self._retention.items():
            rows = OldRows(self._leftovers, name, kept)
            self._where_allowed(rows.name, partial(self._prune_all, rows))
        graphs = Graphs(self._models, self._rules)
        for rule in self._rules:
            lone, others = old_jobs(self._removal, graphs, rule, references)
            if lone is not None:
                self._where_allowed(lone.name, partial(self._prune_all, lone))
            self._where_allowed(others.name, partial(self._prune_some, others, rule))
        own = OwnJobs(self._removal, graphs, references)
        self._where_allowed(own.name, partial(self._prune_all, own))
        orphans = OrphanedRuns(self._leftovers, _ORPHANED_FOR)
        self._where_allowed(orphans.name, partial(self._look_for_orphans, orphans))
        empty = EmptyBatches(self._models, _EMPTY_FOR)
        self._where_allowed(empty.name, partial(self._prune_all, empty))
        return time.monotonic() + _EVERY * random.uniform(0.75, 1.25)  # noqa: S311

    def _forget_starts(self) -> None:
        with self._transaction() as session:
            self._queries.forget_starts.run(session)

    def _where_allowed(self, name: str, step: Callable[[], None]) -> None:
        """Call `step`. If the database role may not delete the rows, log that once: other rows are still pruned."""
        if self._loop.stopping.is_set():
            return
        try:
            step()
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) != _NOT_ALLOWED:
                raise
            if (name, 0) not in self._logged:
                self._logged.add((name, 0))
                log.warning("this role may not delete %ss, so none is pruned: %s", name, reason(error))

    def _prune_all(self, old: Old) -> None:
        for _ in self._prune(old):
            pass

    def _prune_some(self, old: SomeJobs, rule: Rule) -> None:
        for _, cursor in islice(self._prune(old, self._looked_at.get(rule)), _STEPS):
            if cursor is not None:
                self._looked_at[rule] = cursor

    def _look_for_orphans(self, orphans: OrphanedRuns) -> None:
        """Look at the next batch of runs, and continue while a batch contains runs without a job.

        After the last run, the first one follows. The first look begins at a random run: otherwise a worker that is
        replaced often would never reach the last runs.
        """
        if self._next_run is None:
            with self._transaction() as session:
                self._next_run = random.randint(0, self._leftovers.last_run(session))  # noqa: S311
        starts = [self._next_run, 0] if self._next_run else [0]
        for start in starts:
            for gone, cursor in self._prune(orphans, start):
                self._next_run = cursor or 0
                if not gone and cursor:
                    return

    def _prune(self, old: Old, cursor: Any = None) -> Iterator[tuple[int, Any]]:
        """Delete rows batch by batch, with a pause after each batch."""
        passing_over = {row_id for name, row_id in self._refused if name == old.name}
        known = len(self._refused)
        began = time.monotonic()

        def refused(row_id: int, error: Exception) -> None:
            self._refused.add((old.name, row_id))
            if (old.name, row_id) not in self._logged:
                self._logged.add((old.name, row_id))
                warn("delete", old.name, row_id, error)

        for gone, beyond in prune(old, self._transaction, refused, cursor=cursor, passing_over=passing_over):
            if gone:
                log.info("pruned %s", plural(gone, old.name))
            yield gone, beyond
            rest = min(_REST * (time.monotonic() - began), _LONGEST_REST)
            if len(self._refused) - known >= _MOST_REFUSED or (beyond is not None and self._loop.stopping.wait(rest)):
                return
            began = time.monotonic()

    @contextmanager
    def _transaction(self) -> Generator[Session]:
        with Session(self._engine) as session:
            session.execute(_LIMIT_IDLING)
            yield session
            session.commit()
