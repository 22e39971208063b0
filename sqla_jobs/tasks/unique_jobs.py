"""Puts jobs of unique keys into the caller's transaction: each is inserted, or the job that has its key decides."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import instance_state

from sqla_jobs.errors import ArgumentsError, JobExists, JobsError
from sqla_jobs.models.columns import JobMixin
from sqla_jobs.models.mapping import Models
from sqla_jobs.models.types import LIVE, WAITING
from sqla_jobs.queries.unique import Taken, UniqueJobs
from sqla_jobs.rules.unique import Unique
from sqla_jobs.tasks.declaration import Declaration
from sqla_jobs.tasks.enqueue import GatesOf, batches, gate_columns
from sqla_jobs.tasks.enqueued import Enqueued
from sqla_jobs.tasks.unique import Keyed, UniqueRule, declared_rule, literal_rule

J = TypeVar("J", bound=JobMixin)

_LONG = 0.5
"""Seconds; a pause of that length follows a second of waiting for somebody else's lock."""
_FRUITLESS = 20
"""Rounds that find a key neither free nor taken, after which a unique index of the application's is the cause."""


def rule_for(declaration: Declaration, options: Mapping[str, Any]) -> UniqueRule | None:
    """How the jobs of a task with these options are unique. Raises `DeclarationError`."""
    declared, given = declaration.unique, options.get("unique")
    if "unique_key" in options:
        policy = given or (declared.policy if declared else Unique())
        return literal_rule(policy, options["unique_key"])
    if given is None:
        return declared
    arguments = declaration.signature.arguments.parameters
    return declared_rule(declaration.name, given, arguments, declaration.sensitive)


def add_unique(
    session: Session,
    models: Models[J],
    values: dict[str, Any],
    rule: UniqueRule,
    gates_of: GatesOf | None,
) -> tuple[J, int]:
    """The job that was inserted, or the one that has its key, and how many were inserted: 1 or 0.

    Raises `JobExists` where the policy says so.
    """
    args = values.pop("args")
    key = rule.key_of(args)
    with _as_pending(session, models):
        stored = _store(_unique_jobs(session, models, rule, gates_of), values, {key: json.dumps(args)})
        job = _load(session, models.Job, stored.job_ids[key])
    if rule.policy.on_conflict == "raise" and stored.left_out:
        raise _exists(values["task"], key, job)
    return job, len(stored.inserted)


def add_many_unique(
    session: Session,
    models: Models[Any],
    values: Mapping[str, Any],
    items: Iterable[Keyed],
    rule: UniqueRule,
    gates_of: GatesOf | None,
) -> Enqueued:
    """The same for many, in flat memory, all or nothing. Those of one batch are inserted in the order of their keys.

    So two transactions that enqueue the same keys do not wait for each other, as far as one batch goes.
    """
    jobs = _unique_jobs(session, models, rule, gates_of)
    try:
        with session.begin_nested():
            count = Enqueued.total(
                _add_batch(jobs, values, batch) for batch in batches(items, lambda item: len(item.args))
            )
    except _Taken as found:
        taken = jobs.taken([found.key])
        if not taken:
            raise ArgumentsError(
                f"{values['task']}: two of the items have the unique key {found.key!r:.200}, "
                "and its policy is to raise: leave one of them out"
            ) from None
        raise _exists(values["task"], found.key, _load(session, models.Job, taken[0].id)) from None
    return count


def _unique_jobs(session: Session, models: Models[Any], rule: UniqueRule, gates_of: GatesOf | None) -> UniqueJobs:
    def columns(args: str) -> Mapping[str, str | None]:
        return gate_columns(gates_of(json.loads(args)) if gates_of is not None else ())

    return UniqueJobs(session, models, rule.policy, None if gates_of is None else columns)


class _Taken(Exception):
    """A key is taken, and the policy is to raise: the savepoint is rolled back first."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def _add_batch(jobs: UniqueJobs, values: Mapping[str, Any], batch: list[Keyed]) -> Enqueued:
    counts = Counter(item.key for item in batch)
    order = batch if jobs.policy.changes else reversed(batch)  # of one key the last that is put in stays
    chosen = dict(sorted({item.key: item.args for item in order}.items()))
    stored = _store(jobs, values, chosen)
    if jobs.policy.on_conflict == "raise":
        for key in stored.left_out or [key for key, count in counts.items() if count > 1]:
            raise _Taken(key)
    _expire(jobs.session, jobs.models.Job, stored.replaced.values())
    again = sum(counts[key] - 1 for key in stored.inserted)
    replaced = sum(counts[key] for key in stored.replaced)
    left_out = sum(counts[key] for key in stored.left_out)
    if jobs.policy.changes:
        return Enqueued(len(stored.inserted), replaced=replaced + again, left_out=left_out)
    return Enqueued(len(stored.inserted), replaced=replaced, left_out=left_out + again)


@dataclass(frozen=True, slots=True)
class _Stored:
    """What became of some keys: the id of the job that has each."""

    inserted: dict[str, int] = field(default_factory=dict[str, int])
    replaced: dict[str, int] = field(default_factory=dict[str, int])
    left_out: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def job_ids(self) -> dict[str, int]:
        return self.inserted | self.replaced | self.left_out


def _store(jobs: UniqueJobs, values: Mapping[str, Any], args: Mapping[str, str]) -> _Stored:
    """Insert a job for each key that is free; of each other one, do with the job that has it as the policy says.

    Whoever takes or changes one of the keys at the same time is waited for.
    """
    stored, pending = _Stored(), dict(args)
    pause, fruitless = 0.001, 0
    while True:
        has_periods = jobs.policy.per is not None and fruitless < _FRUITLESS
        inserted = jobs.insert(values, pending, any_conflict=has_periods)
        stored.inserted.update(inserted)
        _drop(pending, inserted)
        taken = jobs.taken(pending) if pending else []
        # of several, what is left out now would be waited for later, out of order
        skip_locked = len(args) == 1 and pause < _LONG
        is_free_again = _settle(jobs, values, pending, taken, stored, skip_locked=skip_locked)
        _drop(pending, stored.job_ids)
        if not pending:
            return stored
        fruitless = 0 if taken else fruitless + 1
        if taken and not is_free_again:
            # somebody is claiming or changing one this very moment: what it is when they are done decides
            time.sleep(pause)
            pause = min(2 * pause, _LONG)


def _settle(
    jobs: UniqueJobs,
    values: Mapping[str, Any],
    args: Mapping[str, str],
    taken: Collection[Taken],
    stored: _Stored,
    *,
    skip_locked: bool,
) -> bool:
    """Store what becomes of taken keys, but for those that somebody else holds. Returns whether one was made free."""
    held: list[Taken] = []
    for one in taken:
        is_through = one.state not in LIVE or (one.state == "running" and (one.is_of_period or not jobs.policy.changes))
        if is_through:
            stored.left_out[one.key] = one.id
        else:
            held.append(one)
    if not held:
        return False
    ids = [one.id for one in held]
    if not jobs.policy.changes:
        shared = jobs.share(ids, skip_locked=skip_locked)
        stored.left_out.update({one.key: one.id for one in held if one.id in shared})
        return False
    states = jobs.seize(ids, skip_locked=skip_locked)
    waiting = {one.id: args[one.key] for one in held if states.get(one.id) in WAITING}
    running = [one.id for one in held if states.get(one.id) == "running" and not one.is_of_period]
    if waiting:
        jobs.change(values, waiting)
        stored.replaced.update({one.key: one.id for one in held if one.id in waiting})
    if running:
        jobs.give_up(running)
    return bool(running)


def _drop(pending: dict[str, str], keys: Iterable[str]) -> None:
    for key in keys:
        pending.pop(key, None)


def _as_pending(session: Session, models: Models[Any]) -> AbstractContextManager[Any]:
    """What else is pending stays so, for the listeners of the commit; but for rows to which the job may refer."""
    return nullcontext() if models.tables["jobs"].foreign_keys else session.no_autoflush


def _exists(task: str, key: str, job: JobMixin) -> JobExists:
    return JobExists(
        f"{task}: job {job.id} ({job.state}) has the unique key {key!r:.200}, and the policy is to raise: take the "
        "job from the error's .job, or enqueue again once it has ended or its period is over",
        job,
    )


def _load(session: Session, job: type[J], job_id: int) -> J:
    """The entity as the database has it now, keeping changes of the caller's that are not flushed yet."""
    known = session.identity_map.get(session.identity_key(job, job_id))
    found = session.get(job, job_id)
    if found is None:
        raise JobsError(f"job {job_id} was deleted while it was being returned; enqueue it again")
    if known is not None:
        session.refresh(found, _unchanged(found))
    return found


def _expire(session: Session, job: type[Any], job_ids: Iterable[int]) -> None:
    for job_id in job_ids:
        if (known := session.identity_map.get(session.identity_key(job, job_id))) is not None:
            session.expire(known, _unchanged(known))


def _unchanged(job: Any) -> list[str]:
    state = instance_state(job)
    names = [column.key for column in state.mapper.column_attrs]
    return [name for name in names if not state.attrs[name].history.has_changes()]
