"""Setting and clearing limits, in the caller's transaction."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from sqla_jobs.actions.audit import Changing
from sqla_jobs.database.notify import after_commit
from sqla_jobs.errors import ArgumentsError
from sqla_jobs.models.mapping import Models
from sqla_jobs.queries import Queries
from sqla_jobs.queries.limits import NUMBERS, set_by_operators
from sqla_jobs.rules.limits import MOST_RATE, MOST_RUNNING, Gate, check_limit_name, titled
from sqla_jobs.rules.value_checks import DAY, check_integer, check_queue, check_seconds, check_text
from sqla_jobs.rules.wording import did_you_mean
from sqla_jobs.tasks.registry import Tasks


class Unset:
    """The type of `UNSET`, which means that no key was given. (`None` is a valid key.)"""


UNSET: Final = Unset()


@dataclass(frozen=True)
class Target:
    """The rows of the limits that a person named. `concurrency` or `rate` is empty if there is no such limit."""

    concurrency: str
    rate: str
    tasks: tuple[str, ...]
    """The task's names. A new row limits the jobs with any of these names."""
    name: str = ""
    """The name of the limit; empty if a single key was named."""


def gates_of(target: Target) -> list[str]:
    """Return the one or two rows that a target names."""
    return [gate for gate in (target.concurrency, target.rate) if gate]


def target_of_row(gate: str, tasks: Sequence[str]) -> Target:
    """Return an existing limit, given by its row, as a target."""
    return Target("", gate, tuple(tasks)) if gate.startswith("%") else Target(gate, "", tuple(tasks))


def target(tasks: Tasks[Any], which: object, *, queue: object = None, key: object = UNSET) -> Target:
    """Return the target for a task, a shared limit or a queue.

    `which` is a task, the name of a task, or the name of a limit. A queue has no rate limit. Raises `ArgumentsError`.
    """
    if (which is None) == (queue is None):
        raise ArgumentsError("name a task or a limit, or else a queue, and not both")
    if queue is not None:
        if key is not UNSET:
            raise ArgumentsError("a queue has one limit, and takes no key")
        return Target(f"@{check_queue(queue)}", "", ())
    tasks.load()
    gates = [gate for task in tasks.values() for gate in task._declaration.gates if gate.limit is not None]
    is_task = not isinstance(which, str) or which in tasks
    names = tasks.names(which) if is_task else ()
    name = names[0] if names else check_limit_name("the name of a limit", which, error=ArgumentsError)
    mine = {gate.row: gate for gate in gates if gate.row[1:].partition("=")[0] == name}
    if not mine and not is_task:
        known = {gate.row[1:].partition("=")[0] for gate in gates} | {*tasks}
        raise ArgumentsError(f"no task and no limit is named {name!r:.60}{did_you_mean(name, known)}")
    if not isinstance(key, Unset):
        return Target(_keyed(mine, "#!", key), _keyed(mine, "%", key), ())
    concurrency, rate = _whole(mine, "#!", name, names), _whole(mine, "%", name, names)
    return Target(concurrency, rate, names, name)


def _whole(mine: Mapping[str, Gate], kinds: str, name: str, tasks: Collection[str]) -> str:
    """Return the row without a key or, if there is none, the row for all keys.

    If there is neither, return the row that the task could have.
    """
    found = sorted((row for row in mine if row[0] in kinds), key=lambda row: row.endswith("="))
    return found[0] if found else f"{kinds[0]}{name}" if tasks else ""


def _keyed(mine: Mapping[str, Gate], kinds: str, key: object) -> str:
    gate = next((gate for row, gate in mine.items() if row[0] in kinds and row.endswith("=")), None)
    try:
        return "" if gate is None else gate.of_key(key)
    except (TypeError, ValueError, RecursionError):
        raise ArgumentsError(f"key= must be JSON, as the arguments of jobs are stored, got {key!r:.60}") from None


def set_limit(
    it: Changing,
    target: Target,
    *,
    running: int | None,
    rate: int | None,
    per: float | timedelta | None,
    reason: str = "",
) -> list[str]:
    """Override the declared numbers, effective once the caller commits. Return the rows that were set."""
    row: Any = it.models.Limit
    why = {"reason": check_text("reason", reason)} if reason else {}
    found = _checked(target, running, rate, per)
    for gate, numbers in found.items():
        values = {**numbers, "set_at": sa.func.clock_timestamp(), "changed_at": sa.func.clock_timestamp()}
        statement = insert(row).values(gate=gate, tasks=list(target.tasks), **values)
        it.session.execute(statement.on_conflict_do_update(index_elements=["gate"], set_=values))
        said: dict[str, Any] = {"rate": rate, "per": str(per)} if gate.startswith("%") else {"running": running}
        it.record("set", titled(gate), **said, **why)
    after_commit(it.session, it.models.Job, it.models.channel, "")
    return list(found)


def spend(engine: sa.Engine, models: Models[Any], target: Target, number: int) -> bool:
    """Take `number` starts from a rate, and commit. If fewer are free, take none and return False."""
    check_integer("number", number, least=1, most=MOST_RATE)
    if not target.rate:
        raise ArgumentsError("this rate is not declared with key=: leave key= out, or declare it so")
    if target.rate.endswith("="):
        raise ArgumentsError(f"the rate {target.rate[1:-1]} goes by key: say key=")
    queries = Queries(models)
    with engine.connect().execution_options(isolation_level="READ COMMITTED") as connection, connection.begin():
        queries.lock_limits.run(connection)
        return queries.spend(connection, target.rate, number)


def _checked(
    target: Target, running: int | None, rate: int | None, per: float | timedelta | None
) -> dict[str, dict[str, Any]]:
    if running is None and rate is None:
        raise ArgumentsError("give a number at once (running), or a rate with its period (per), or both")
    if (rate is None) != (per is None):
        raise ArgumentsError(f"rate= and per= go together, got rate={rate!r:.20} and per={per!r:.20}")
    found: dict[str, dict[str, Any]] = {}
    if running is not None:
        gate = _known(target, target.concurrency, "running")
        most = 1 if gate[0] == "!" else MOST_RUNNING
        found[gate] = {"running": check_integer("running", running, least=0, most=most)}
    if rate is not None:
        seconds = check_seconds("per", per, least=1.0, most=DAY)
        found[_known(target, target.rate, "rate")] = {
            "rate": check_integer("rate", rate, least=0, most=MOST_RATE),
            "per": seconds,
        }
    return found


def _known(target: Target, gate: str, what: str) -> str:
    if not gate:
        named = f" named {target.name!r:.60}" if target.name else ""
        raise ArgumentsError(
            f"{what}= cannot be set: no task declares such a limit{named}, with key= for one key; a queue takes running"
        )
    return gate


def clear_limit(it: Changing, target: Target) -> list[str]:
    """Restore the declared numbers, effective once the caller commits. Return the rows that an operator had set."""
    rows = it.session.scalars(set_by_operators(it.models, gates_of(target))).all()
    for limit in rows:
        declared = limit.declared or {}
        limit.running, limit.rate, limit.per = (declared.get(name) for name in NUMBERS)
        limit.hold = declared.get("hold", False)
        limit.set_at, limit.changed_at = None, sa.func.clock_timestamp()
        it.record("clear", titled(limit.gate))
    it.session.flush()
    after_commit(it.session, it.models.Job, it.models.channel, "")
    return [limit.gate for limit in rows]
