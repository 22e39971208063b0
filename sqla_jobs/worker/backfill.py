"""Gives jobs the gates that they lack, according to this process's code and to operators' limits."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqla_jobs.database.refusals import in_parts
from sqla_jobs.errors import ConfigurationError
from sqla_jobs.models.mapping import Models
from sqla_jobs.queries import MANY, Claimed, Queries
from sqla_jobs.queries.backfill import Gated, LacksGates
from sqla_jobs.queries.limits import DeclaredLimit, Stored, declare
from sqla_jobs.rules.limits import PLACES, SPLIT_REMEDY, described, ordered_gate, titled, worded
from sqla_jobs.runtime.set_aside import SetAside
from sqla_jobs.tasks.declaration import Declaration

log: logging.Logger = logging.getLogger("sqla_jobs.worker")

_EVERY = 5.0
"""Seconds between looks for jobs that lack gates, without news about limits."""
_REST = 20
"""After a look, even news waits so many times as long as the look took."""
_STARTS = 0.1
"""Seconds that another process which starts may take to store its limits."""

Begin = Callable[[], AbstractContextManager[sa.Connection]]
"""Begins a transaction or savepoint that ends with the block."""


@dataclass(frozen=True)
class Limits:
    """The limits that a look has found beside those that this process's code declares."""

    stored: Stored
    """The result of the last time that declared limits were stored."""
    queues: frozenset[str] = frozenset()
    """The queues that an operator has limited."""
    by_task: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The gates that operators added, by task."""
    token: object = field(default=None, compare=False)
    """The token of the news before the look. None if there are more jobs that lack gates."""
    rested_at: float = field(default=0.0, compare=False)
    """When the next look may come if there is news, by `time.monotonic()`."""

    def rows(self, declaration: Declaration) -> set[str]:
        """Return the rows of limits, and of turns, of which each job of a task needs a gate."""
        return {gate.row for gate in declaration.gates} | {*self.by_task.get(declaration.name, ())}


class Backfill:
    """Gives jobs the gates that they lack. Only one thread at a time may use it, except for `tell` and `limits`.

    A job may start only behind the gates that this process's code and the operators demand. Its gates are made once,
    by whoever inserts it: `enqueue`, the clock, or the statement that stores a failure. Others may lack gates:

    - A job without gates was inserted by plain SQL, or before its task was limited. No claim takes it. The plain claim
      leaves out the tasks that this code limits and, in its own snapshot, those that rows of limits name. The claim
      behind gates finds no jobs without gates, and what it finds in a limited queue is treated like the next kind. A
      look gives such jobs their gates.
    - A job with gates may lack one that a deploy or an operator has added since. A look finds it by their number, or
      else a claim takes it. The claim then sees that the job has no gate of some row, gives it one, and gives the job
      back. Afterwards the job has a gate of each row, so this happens once, whatever a key function returns.
    - A running job gets the gates that it lacks in a look, before the waiting jobs do. While another transaction locks
      its row, it gets none, and no limit counts it.

    A key is not made again: after a deploy that changes how it is made, waiting jobs keep the key that they have.
    """

    def __init__(
        self,
        queries: Queries,
        begin: Begin,
        declarations: Mapping[str, Declaration],
        queues: Sequence[str],
        *,
        store: Callable[[], Stored] = Stored,
        set_aside: SetAside | None = None,
    ) -> None:
        """Prepare for the given tasks.

        `declarations` maps the names and aliases of all known tasks to their declarations. `store` stores their limits.
        """
        self._queries = queries
        self._begin = begin
        self._declarations = declarations
        self._queues = queues
        self._store = store
        self._set_aside = set_aside or SetAside()
        gates = [gate for declaration in declarations.values() for gate in declaration.gates]
        self._has_gates = bool(gates)
        self.limits: Limits = Limits(Stored())
        """What the last look has found. The next look replaces it."""
        self._token: object = object()
        """An object that `tell` replaces."""

    def tell(self) -> None:
        """Let the next look come soon, and see all that was committed before this call. Any thread may call this."""
        self._token = object()

    @property
    def is_behind(self) -> bool:
        """True if there has been news since the last look began."""
        return self._token is not self.limits.token

    @property
    def is_limited(self) -> bool:
        """True if code limits any task, or the table of limits had rows when this process started."""
        return self._has_gates or self.limits.stored.has_rows

    def declare(self) -> None:
        """Store the declared limits. Raises `ConfigurationError` if two tasks declare the same limit differently.

        If another transaction has locked a limit's row, a later look stores the limit.
        """
        stored = self._store()
        if stored.left:  # perhaps only another process that starts now, and stores the same limits
            time.sleep(_STARTS)
            stored = self._store()
        self.limits = Limits(stored)
        for row, how in stored.split.items():
            log.warning("the %s is split: %s. Remedy: %s", titled(row), how, SPLIT_REMEDY)
        for row in sorted(stored.left):
            log.warning(
                "the %s is not stored yet, since another transaction has locked its row: end that transaction; "
                "it may be one that sets or clears the limit",
                titled(row),
            )

    @property
    def due_at(self) -> float:
        """When to look next, by `time.monotonic()`."""
        return self.limits.rested_at + (0.0 if self.is_behind else _EVERY)

    def look(self) -> bool:
        """Read the operators' limits, and give jobs the gates that they lack, the running ones first.

        Return whether anything has changed, so that jobs that could not start before may start now.
        """
        before, token = self.limits, self._token
        stored = self._store() if before.stored.left else before.stored
        with self._begin() as connection:
            limits = self._limits(stored, self._queries.operator_limits(connection))
        began = time.monotonic()
        lacking = self._lacking(limits)
        self._give(limits, [one for one in lacking if one.is_running])
        waiting = [one for one in lacking if not one.is_running and one.task not in stored.held_up]
        gave = self._give(limits, waiting)
        ended = time.monotonic()
        has_more = gave > 0 and len(waiting) >= MANY
        rested_at = ended if has_more else ended + _REST * (ended - began)
        self.limits = replace(limits, token=None if has_more else token, rested_at=rested_at)
        return gave > 0 or limits != before

    @staticmethod
    def _limits(stored: Stored, of_operators: Sequence[tuple[str, Sequence[str]]]) -> Limits:
        by_task: dict[str, list[str]] = {}
        for gate, tasks in of_operators:
            for task in tasks:
                by_task.setdefault(task, []).append(gate)
        queues = frozenset(gate[1:] for gate, _ in of_operators if gate.startswith("@"))
        return Limits(stored, queues, by_task)

    def _lacking(self, limits: Limits) -> list[LacksGates]:
        """Return the running jobs that lack gates, and some of the waiting ones."""
        expected = {name: len(rows) for name, one in self._declarations.items() if (rows := limits.rows(one))}
        if not expected:
            return []
        with self._begin() as connection:
            return self._queries.lacking_gates(connection, expected, self._queues)

    def missing(self, claimed: Sequence[Claimed]) -> set[int]:
        """Give claimed jobs the gates that they lack. Return the run ids of these jobs, which may not begin."""
        limits = self.limits
        lacking = [job for job in claimed if not self._has_all(limits, job)]
        self._give(limits, [LacksGates(job.job_id, job.task, job.args, [*job.gates], True) for job in lacking])
        return {job.run_id for job in lacking}

    def _has_all(self, limits: Limits, job: Claimed) -> bool:
        declaration, gates = self._declarations[job.task], job.gates
        of_operators = limits.by_task.get(declaration.name, ())
        return all(gate in gates for gate in of_operators) and all(
            any(map(gate.fits, gates)) for gate in declaration.gates
        )

    def _give(self, limits: Limits, found: Iterable[LacksGates]) -> int:
        """Store gates. Return the number of changed jobs. A job that the server refuses to change is set aside."""
        set_aside = self._set_aside.reasons
        made = [(one, self._joined(limits, one)) for one in found if one.job_id not in set_aside]
        gated = [Gated(one.job_id, one.args, gates, ordered_gate(gates)) for one, gates in made]

        def give(some: Sequence[Gated]) -> int:
            with self._begin() as connection:
                return self._queries.give_gates(connection, some)

        return sum(in_parts(gated, give, lambda one, error: self._set_aside.refused("its limit", one.job_id, error)))

    def _joined(self, limits: Limits, one: LacksGates) -> list[str]:
        """Return the gates of operators and of this code, and the job's other gates, which other code may declare."""
        declaration = self._declarations[one.task]
        of_operators = limits.by_task.get(declaration.name, ())
        wanted = dict.fromkeys([*of_operators, *declaration.gates_beside(one.args, one.gates)])
        left = [gate for gate in one.gates if gate not in wanted and gate[0] not in "!~"]
        others = [gate for gate in left if not any(mine.misspells(gate) for mine in declaration.gates)]
        limiting = [gate for gate in wanted if gate[0] != "~"]
        turns = [gate for gate in wanted if gate[0] == "~"]
        return [*limiting, *others[: max(0, PLACES - len(limiting))], *turns]


def store_limits(engine: sa.Engine, models: Models[Any], declarations: Mapping[str, Declaration]) -> Stored:
    """Store the limits that code declares, in a transaction of its own."""
    with Session(engine.execution_options(isolation_level="READ COMMITTED")) as session, session.begin():
        return declare(session, models, list(declarations), declared_limits(declarations.values()))


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
