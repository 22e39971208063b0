"""Gives jobs the gates that they lack, according to this process's code and to operators' limits."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from sqlalchemy import Connection, Engine, select
from sqlalchemy.orm import Session

from sqla_jobs.database.refusals import in_parts
from sqla_jobs.errors import ConfigurationError
from sqla_jobs.models.mapping import Models
from sqla_jobs.queries import Claimed, Queries
from sqla_jobs.queries.backfill import Gated, LacksGates
from sqla_jobs.queries.limits import DeclaredLimit, Stored, declare
from sqla_jobs.rules.limits import PLACES, SPLIT_REMEDY, described, ordered_gate, titled, worded
from sqla_jobs.runtime.set_aside import SetAside
from sqla_jobs.tasks.declaration import Declaration

log: logging.Logger = logging.getLogger("sqla_jobs.worker")

_SOON, _SELDOM = 1.0, 5.0
"""Seconds between looks for jobs that lack gates. The first number applies after news, the second otherwise."""
_STARTS = 0.1
"""Seconds that another process which starts may take to store its limits."""
_FORGET = 3600.0
"""Seconds between deletions of old records of job starts."""
_MOST_MADE = 10_000
_UNSTEADY = (
    "each time it is looked at its limits have another key: key= and fair_by= must make one key of the same arguments, "
    "in every process, so without the time, random numbers and hash()"
)

Begin = Callable[[], AbstractContextManager[Connection]]
"""Begins a transaction or savepoint that ends with the block."""


class Backfill:
    """Gives jobs the gates that they lack. Only one thread at a time may use it."""

    def __init__(
        self,
        queries: Queries,
        declarations: Mapping[str, Declaration],
        queues: Sequence[str],
        set_aside: SetAside | None = None,
    ) -> None:
        """Prepare for the given tasks.

        `declarations` maps the names and aliases of all known tasks to their declarations.
        """
        self._queries = queries
        self._declarations = declarations
        self._queues = queues
        self._set_aside = set_aside or SetAside()
        gates = [gate for declaration in declarations.values() for gate in declaration.gates]
        self.spreads: bool = any(gate.limit is not None and "burst" in gate.limit.values for gate in gates)
        """True if code declares a rate with a burst."""
        self.queues: set[str] = set()
        """The queues that an operator has limited."""
        self.held_up: set[str] = set()
        """Tasks whose jobs may not start now.

        A running job behind the same limit is not counted yet, because its row cannot be changed. Or their limit is not
        stored yet, because its row is locked.
        """
        self.added_to_tasks: dict[str, list[str]] = {}
        """The gates that operators added, by task."""
        self._made: dict[int, list[str]] = {}
        """By job id, the gates that the code made when the job was given gates. A claim removes the entry."""
        self._has_rows = False
        self._unstored = Stored({}, set(), set())
        """The result of the last time that declared limits were stored."""
        self._looked_at = self._rest = self._forget_at = 0.0
        self._news: object = None
        """The `news` object that was passed to the last look."""
        self._gave = self._left = 0
        """How many waiting jobs got gates in the last look, and how many other jobs lacked gates."""

    @property
    def is_limited(self) -> bool:
        """True if code limits any task, or the table of limits had rows when this process started."""
        return self._has_rows or any(declaration.gates for declaration in self._declarations.values())

    @property
    def by_operators(self) -> bool:
        """True if an operator limits any task or queue."""
        return bool(self.added_to_tasks or self.queues)

    def declare(self, engine: Engine, models: Models[Any]) -> None:
        """Store the declared limits. Raises `ConfigurationError` if two tasks declare the same limit differently.

        If another transaction has locked a limit's row, a later look stores the limit.
        """
        self._store = partial(self._stored, engine.execution_options(isolation_level="READ COMMITTED"), models)
        stored = self._store()
        if stored.left:  # perhaps only another process that starts now, and stores the same limits
            time.sleep(_STARTS)
            stored = self._store()
        self._unstored = stored
        for row, how in stored.split.items():
            log.warning("the %s is split: %s. Remedy: %s", titled(row), how, SPLIT_REMEDY)
        for row in sorted(stored.left):
            log.warning(
                "the %s is not stored yet, since another transaction has locked its row: end that transaction; "
                "it may be one that sets or clears the limit",
                titled(row),
            )

    def _stored(self, engine: Engine, models: Models[Any]) -> Stored:
        with Session(engine) as session, session.begin():
            stored = declare(session, models, list(self._declarations), declared_limits(self._declarations.values()))
            self._has_rows = session.scalars(select(models.Limit).limit(1)).first() is not None
        return stored

    def is_behind(self, news: object) -> bool:
        """Return whether `news` has come since the last look began."""
        return news is not self._news

    def due_at(self, news: object) -> float:
        """Return when to look next if nothing wakes the loop before, by `time.monotonic()`.

        Return infinity if there is no news, no job is known to lack gates, and all declared limits are stored.
        """
        is_due = self.is_behind(news) or self._gave or self._left or self._unstored.left
        return self._due_at(news) if is_due else math.inf

    def _due_at(self, news: object) -> float:
        after = 0.0 if self._gave else _SOON if self.is_behind(news) else _SELDOM
        return self._looked_at + max(after, self._rest)

    def look_if_due(self, begin: Begin, news: object) -> bool:
        """Call `look` if it is due. Return whether any jobs that were held up may start now."""
        if time.monotonic() < self._due_at(news):
            return False
        return self.look(begin, news)

    def look(self, begin: Begin, news: object = None) -> bool:
        """Read the operators' limits, and give jobs the gates that they lack.

        Running jobs get their gates first: no job starts behind a gate before all running jobs are counted. Return
        whether any jobs that were held up may start now.
        """
        before = self.queues, self.held_up
        self._looked_at = -math.inf  # if this fails, look again before anything is claimed
        self._look(begin, time.monotonic())
        self._looked_at, self._news = time.monotonic(), news
        return self._gave > 0 or before != (self.queues, self.held_up)

    def _look(self, begin: Begin, now: float) -> None:
        found: dict[str, list[str]] = {}
        with begin() as connection:
            limits = self._queries.operator_limits(connection)
        self.queues = {gate[1:] for gate, _ in limits if gate.startswith("@")}
        for gate, tasks in limits:
            for task in tasks:
                found.setdefault(task, []).append(gate)
        self.added_to_tasks = found
        if self._unstored.left:
            self._unstored = self._store()
        if now >= self._forget_at:
            self._forget_at = now + _FORGET
            with begin() as connection:
                self._queries.forget_starts.run(connection)
        expected = {
            name: number
            for name, declaration in self._declarations.items()
            if (number := len(declaration.gates) + len(self._added_by_operators(declaration)))
        }
        self.held_up, self._gave, self._left, self._rest = self._unstored.held_up, 0, 0, 0.0
        if not expected:
            return
        began = time.monotonic()
        with begin() as connection:
            lacking_gates = self._queries.lacking_gates(connection, expected, self._queues)
        self.held_up = self._unstored.held_up | self._count_running(
            begin, expected, [one for one in lacking_gates if one.is_running]
        )
        self._gave = self._give(begin, [one for one in lacking_gates if not one.is_running])
        self._left = len(lacking_gates) - self._gave
        if not self._gave and not self.held_up:
            self._rest = 20 * (time.monotonic() - began)

    def _count_running(self, begin: Begin, expected: Mapping[str, int], running: Sequence[LacksGates]) -> set[str]:
        """Give gates to running jobs. Return the tasks that share a limit with a job whose row cannot be changed."""
        if self._give(begin, running) == len(running):
            return set()
        with begin() as connection:
            left = [one for one in self._queries.lacking_gates(connection, expected, []) if one.is_running]
        uncounted = {row for one in left for row in self._rows(one.task)}
        return {name for name in self._declarations if not uncounted.isdisjoint(self._rows(name))}

    def _rows(self, task: str) -> set[str]:
        """Return the names of the limits that apply to a task."""
        declaration = self._declarations[task]
        return {gate.row for gate in declaration.gates} | {*self._added_by_operators(declaration)}

    def missing(self, begin: Begin, claimed: Sequence[Claimed]) -> set[int]:
        """Give claimed jobs the gates that they lack. Return the run ids of the jobs that lacked gates.

        If a job's key function returns a different key each time for the same arguments, the job is set aside.
        Otherwise it would be claimed and given back forever.
        """
        lacking = [job for job in claimed if not self._expected(job.task, job.args).keys() <= set(job.gates)]
        unsteady = [job for job in lacking if self._is_unsteady(job)]
        for job in unsteady:
            self._set_aside.add(job.job_id, _UNSTEADY)
        for job in claimed:
            self._made.pop(job.job_id, None)
        self._give(begin, [LacksGates(job.job_id, job.task, job.args, [*job.gates], True) for job in lacking])
        return {job.run_id for job in lacking}

    def _is_unsteady(self, job: Claimed) -> bool:
        """Return whether the job has the gates that this process gave it, but the code now returns different gates."""
        made = self._made.get(job.job_id)
        return made is not None and {*made} <= {*job.gates} and made != self._of_code(job.task, job.args)

    def _give(self, begin: Begin, found: Iterable[LacksGates]) -> int:
        """Store gates. Return the number of changed jobs. A job that the server refuses to change is set aside."""
        set_aside = self._set_aside.reasons
        free = [one for one in found if one.job_id not in set_aside]
        made = [(one, self._joined(one)) for one in free]
        gated = [Gated(one.job_id, one.args, gates, ordered_gate(gates)) for one, gates in made]

        def give(some: Sequence[Gated]) -> int:
            with begin() as connection:
                return self._queries.give_gates(connection, some)

        return sum(in_parts(gated, give, lambda one, error: self._set_aside.refused("its limit", one.job_id, error)))

    def _joined(self, one: LacksGates) -> list[str]:
        """Return the gates of operators and of this code, and the job's other gates, which other code may declare."""
        if len(self._made) >= _MOST_MADE:
            self._made.clear()
        declaration = self._declarations[one.task]
        self._made[one.job_id] = made = self._of_code(one.task, one.args)
        wanted = dict.fromkeys([*self._added_by_operators(declaration), *made])
        left = [gate for gate in one.gates if gate not in wanted and gate[0] not in "!~"]
        others = [gate for gate in left if not any(mine.misspells(gate) for mine in declaration.gates)]
        limits = [gate for gate in wanted if gate[0] != "~"]
        turns = [gate for gate in wanted if gate[0] == "~"]
        return [*limits, *others[: max(0, PLACES - len(limits))], *turns]

    def _expected(self, task: str, args: str) -> dict[str, None]:
        return dict.fromkeys([*self._added_by_operators(self._declarations[task]), *self._of_code(task, args)])

    def _of_code(self, task: str, args: str) -> list[str]:
        return self._declarations[task].gates_of_row(args)

    def _added_by_operators(self, declaration: Declaration) -> list[str]:
        declared = {gate.row for gate in declaration.gates}
        return [gate for gate in self.added_to_tasks.get(declaration.name, ()) if gate not in declared]


def declared_limits(declarations: Iterable[Declaration]) -> Iterator[DeclaredLimit]:
    """Yield a row for each declared limit.

    Raises `ConfigurationError` if two tasks declare the same limit differently.
    """
    rows: dict[str, DeclaredLimit] = {}
    said_by: dict[str, str] = {}
    for declaration in declarations:
        for gate in declaration.gates:
            if gate.limit is None:
                continue
            mine, tasks = gate.limit.values, frozenset([declaration.name, *declaration.aliases])
            known = rows.get(gate.row)
            if known is not None and known.values != mine:
                raise ConfigurationError(
                    f"the limit {described(gate.row)} is {worded(known.values)} of task {said_by[gate.row]} and "
                    f"{worded(mine)} of task {declaration.name}: say the same for both, or give one another name="
                )
            tasks |= known.tasks if known else frozenset()
            rows[gate.row] = DeclaredLimit(gate.row, mine, tasks, gate.is_hidden)
            said_by.setdefault(gate.row, declaration.name)
    yield from rows.values()
