"""Enqueues jobs with unique keys in the caller's transaction. If a key is taken, the policy applies."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple, TypeVar

import sqlalchemy as sa
from pydantic_core import from_json
from sqlalchemy.orm import Session, make_transient_to_detached

from sqla_jobs.database.commits import before_commit, is_waiting, on_rollback, savepoint, write_now
from sqla_jobs.database.notify import after_release
from sqla_jobs.database.sharding import known_row, present_shard, put_into
from sqla_jobs.errors import ArgumentsError, JobExists
from sqla_jobs.models.columns import JobMixin
from sqla_jobs.models.mapping import Models
from sqla_jobs.models.types import LIVE, NOT_RUNNING
from sqla_jobs.queries.unique import Holder, UniqueJobs, statements_for
from sqla_jobs.rules.unique import Unique
from sqla_jobs.tasks.declaration import Declaration
from sqla_jobs.tasks.enqueue import GatesOf, add_one, batches, expressed, gate_columns
from sqla_jobs.tasks.enqueued import Enqueued
from sqla_jobs.tasks.unique import Keyed, UniqueRule, declared_rule, literal_rule

J = TypeVar("J", bound=JobMixin)

_LONG = 0.5
"""The longest pause between two rounds, in seconds. Once it is reached, `_store` waits for locked rows."""
_FRUITLESS = 20
"""If a key is neither free nor taken for this many rounds, a unique index of the application must be the cause.

After this many turns, a batch takes its keys in any order.
"""


def rule_for(declaration: Declaration, options: Mapping[str, Any]) -> UniqueRule | None:
    """Return the rule for unique jobs of a task with these options. Raises `DeclarationError`."""
    declared, given = declaration.unique, options.get("unique")
    if "unique_key" in options:
        policy = given or (declared.policy if declared else Unique())
        return literal_rule(policy, options["unique_key"])
    if given is None:
        return declared
    arguments = declaration.signature.arguments.parameters
    return declared_rule(declaration.name, given, arguments, declaration.sensitive, declaration.opened)


def add_unique(
    session: Session,
    models: Models[J],
    values: Mapping[str, Any],
    key: str,
    args: str,
    rule: UniqueRule,
    gates_of: GatesOf | None,
) -> tuple[J, int]:
    """Insert a job, or apply the policy to the live job with its key. Return the job, and 1 if it was inserted, else 0.

    Raises `JobExists` if the key is taken and the policy is "raise", or the live job is not in the new one's batch.
    """
    _flush_jobs(session, models.Job)
    jobs = _unique_jobs(session, models, values, rule.policy, gates_of)
    with savepoint(session, models.Job) if "batch_id" in values else _as_pending(session, models):
        while True:
            stored = _store(jobs, rule.policy, key, args)
            job: J | None = _job(jobs, stored, key, args)
            if job is not None:  # otherwise it has been deleted since
                break
        # otherwise it would keep rolled-back values
        on_rollback(session, partial(_expire, session, models.Job, [job.id]))
        _tell_when_free(jobs, stored)
        _check_batch(jobs, rule.policy, stored)
    if rule.policy.on_conflict == "raise" and stored.left_out:
        raise _exists(values["task"], key, job)
    _overtake(jobs, [key])
    return job, len(stored.inserted)


def _job(jobs: UniqueJobs, stored: _Stored, key: str, args: str) -> Any:
    """Return the job that has the key, as an object of the session. Return None if it has been deleted.

    The object of a new job is like one after a flush: what it was not given is loaded when it is read.
    """
    session, job_class = jobs.session, jobs.statements.models.Job
    shard, job_id = present_shard(session), stored.holders[key].id
    if key in stored.inserted:
        known = {name: one for name, one in jobs.values.items() if not isinstance(one, sa.ColumnElement | timedelta)}
        job = job_class(**known, id=job_id, args=from_json(args), unique_key=key)
        put_into(job, shard)
        make_transient_to_detached(job)
        session.add(job)
    else:
        job = session.get(job_class, job_id, populate_existing=True, identity_token=shard)
    if job is not None:
        job.is_new = key in stored.inserted
    return job


def add_many_unique(
    session: Session,
    models: Models[Any],
    values: Mapping[str, Any],
    items: Iterable[Keyed],
    rule: UniqueRule,
    gates_of: GatesOf | None,
    ids: list[int] | None,
) -> Enqueued:
    """Add many jobs like `add_unique`, in constant memory; an error undoes all of them.

    Within one batch, two transactions that enqueue the same keys do not deadlock. For each item, `ids` receives the id
    of the new job, or of the job that has the item's key.
    """
    jobs = _unique_jobs(session, models, values, rule.policy, gates_of)
    with savepoint(session, models.Job):
        return Enqueued.total(
            _add_batch(jobs, models.Job, rule.policy, batch, ids)
            for batch in batches(items, lambda item: len(item.args))
        )


def _unique_jobs(
    session: Session,
    models: Models[Any],
    values: Mapping[str, Any],
    policy: Unique,
    gates_of: GatesOf | None,
) -> UniqueJobs:
    def columns(args: str) -> Mapping[str, str | None]:
        return gate_columns(gates_of(json.loads(args)) if gates_of is not None else ())

    statements = statements_for(models, policy, values, gated=gates_of is not None)
    return UniqueJobs(session, statements, values, None if gates_of is None else columns)


@dataclass(frozen=True, slots=True, eq=False)
class Later:
    """An enqueue that is written in the last moment of the caller's transaction."""

    models: Models[Any]
    values: Mapping[str, Any]
    """The column values of the job. A timedelta in `run_at` is a delay, measured by the server's clock."""
    args: str
    key: str | None
    """None for a job that is not unique."""
    policy: Unique
    gates_of: GatesOf | None
    inserted: Callable[[Session, int], None]
    """Called with the number of jobs that were inserted for enqueues with these values."""


class _Overtaken(NamedTuple):
    """Keys that the transaction has taken at once, after it had enqueued them for the last moment."""

    channel: str
    keys: Iterable[str]


def add_at_commit(session: Session, later: Later) -> None:
    """Add a job in the last moment of the caller's transaction.

    A session that is bound to a connection writes at once: it does not hear of a commit by the connection's owner.

    Raises `ArgumentsError` for a session with two-phase commits, and for a policy that raises.
    """
    task, job_class = later.values["task"], later.models.Job
    if session.twophase:
        raise ArgumentsError(
            f"{task}: enqueue_at_commit does not fit a session with twophase=True, which holds locks from PREPARE "
            "TRANSACTION until all databases have answered: call enqueue, or enqueue in another session"
        )
    if later.policy.on_conflict == "raise":
        raise ArgumentsError(
            f"{task}: enqueue_at_commit does not fit Unique(on_conflict='raise'): the commit finds out whether the key "
            "is taken, when the call that could raise has returned; call enqueue, or use 'return'"
        )
    if later.gates_of is not None:
        later.gates_of(json.loads(later.args))  # an error about the arguments is raised here
    if session.dispatch.do_orm_execute and not is_waiting(session):
        # extensions such as zope.sqlalchemy commit only sessions of which they have seen a write
        nothing = sa.update(job_class).where(sa.false()).values(progress_message=job_class.progress_message)
        session.execute(nothing, execution_options={"synchronize_session": False})
    before_commit(session, _write_all, later)
    if isinstance(session.get_bind(job_class), sa.Connection):  # its owner may commit without the session
        write_now(session)


def _overtake(jobs: UniqueJobs, keys: Iterable[str]) -> None:
    """Note that these keys have been taken: what waits for the commit with one of them is older."""
    if is_waiting(jobs.session):
        before_commit(jobs.session, _write_all, _Overtaken(jobs.statements.models.channel, keys))


def _write_all(session: Session, enqueues: Sequence[Later | _Overtaken]) -> None:
    """Write the last enqueue of each key, in the order of the keys, so that two transactions do not deadlock."""
    last: dict[tuple[str, str], Later] = {}
    for one in enqueues:
        if isinstance(one, _Overtaken):
            for key in one.keys:
                last.pop((key, one.channel), None)
        elif one.key is None:
            add_one(session, one.models, expressed(one.values), from_json(one.args), one.gates_of)
            one.inserted(session, 1)
        else:
            last[one.key, one.models.channel] = one
    in_order = (last[place] for place in sorted(last))
    for _, group in groupby(in_order, key=lambda one: id(one.values)):
        _write(session, [*group])


def _write(session: Session, group: Sequence[Later]) -> None:
    """Write enqueues with the same values, whose keys are sorted."""
    first, args = group[0], {str(one.key): one.args for one in group}
    policy = first.policy
    jobs = _unique_jobs(session, first.models, first.values, policy, first.gates_of)
    if policy.replaces and policy.per is None:
        stored = _change(jobs, args)
    else:
        stored = _Stored()
        for key, one in args.items():
            stored.add(_store(jobs, policy, key, one))
    _tell_when_free(jobs, stored)
    _read_again(session, first.models.Job, [one.id for one in stored.replaced.values()])
    first.inserted(session, len(stored.inserted))


class _Again(Exception):
    """Raised to roll back a batch and begin it again. If the batch continued, it might lock keys out of order."""


def _add_batch(jobs: UniqueJobs, job: type[Any], policy: Unique, batch: list[Keyed], ids: list[int] | None) -> Enqueued:
    keyed = [(key, args) for key, args in batch if key is not None]
    counts = Counter(key for key, _ in keyed)
    _overtake(jobs, counts)
    order = keyed if policy.replaces else reversed(keyed)  # the dict keeps the last entry for each key
    chosen = dict(sorted(dict(order).items()))
    stored = _store_batch(jobs, job, policy, chosen) if chosen else _Stored()
    if policy.on_conflict == "raise" and len(chosen) < len(keyed):
        key = counts.most_common(1)[0][0]
        raise ArgumentsError(
            f"{jobs.values['task']}: two of the items have the unique key {key!r:.200}, "
            "and its policy is to raise: leave one of them out"
        )
    plain = jobs.insert_plain([args for key, args in batch if key is None]) if len(keyed) < len(batch) else []
    if ids is not None:
        holders, others = stored.holders, iter(plain)
        ids += (next(others) if key is None else holders[key].id for key, _ in batch)
    _read_again(jobs.session, job, [one.id for one in stored.replaced.values()])
    again = sum(counts[key] - 1 for key in stored.inserted)
    replaced = sum(counts[key] for key in stored.replaced)
    left_out = sum(counts[key] for key in stored.left_out)
    inserted = len(stored.inserted) + len(plain)
    if policy.replaces:
        return Enqueued(inserted, replaced=replaced + again, skipped=left_out)
    return Enqueued(inserted, replaced=replaced, skipped=left_out + again)


def _store_batch(jobs: UniqueJobs, job: type[Any], policy: Unique, args: Mapping[str, str]) -> _Stored:
    """Enqueue jobs for the sorted keys in `args`. Raises `JobExists` if a key is taken and the policy is "raise"."""
    known: _Taken = {}
    turns = 0
    while True:
        turns += 1
        with suppress(_Again), savepoint(jobs.session, job):
            stored = _store_many(jobs, policy, args, known, in_order=turns < _FRUITLESS)
            _tell_when_free(jobs, stored)
            _check_batch(jobs, policy, stored)
            if policy.on_conflict == "raise":
                for key, one in stored.left_out.items():
                    if (found := jobs.session.get(job, one.id, populate_existing=True)) is None:
                        del known[key]  # the job has been deleted since
                        raise _Again
                    raise _exists(jobs.values["task"], key, found)
            return stored


def _check_batch(jobs: UniqueJobs, policy: Unique, stored: _Stored) -> None:
    """Raise `JobExists` if a job that has a key is not in the batch that was to get a job with the key.

    The batch would be without that job, and whoever waits for the batch would not wait for it.
    """
    if (batch_id := jobs.values.get("batch_id")) is None or policy.on_conflict == "raise":
        return
    for key, one in (stored.replaced | stored.left_out).items():
        job = None if one.batch_id == batch_id else jobs.session.get(jobs.statements.models.Job, one.id)
        if job is not None:
            raise JobExists(
                f"{jobs.values['task']}: job {one.id} ({one.state}) has the unique key {key!r:.200} and is not in "
                f"batch {batch_id}, so the batch would not wait for it: enqueue what waits for both with "
                "after=[batch, job], with the error's .job, or enqueue without batch=",
                job,
            )


def _tell_when_free(jobs: UniqueJobs, stored: _Stored) -> None:
    """Notify workers of the waiting jobs that this transaction has locked, once it has ended."""
    models = jobs.statements.models
    held = (stored.replaced | stored.left_out).values()
    for message in {one.message for one in held if one.state in NOT_RUNNING} | stored.given_up:
        after_release(jobs.session, models.Job, models.channel, message)


_Taken = dict[str, tuple[Holder, bool]]
"""For each key: the job that has it, and True if any job with the key was created in the current period."""


@dataclass(frozen=True, slots=True)
class _Stored:
    """What was done for some keys, with the job that now has each key."""

    inserted: dict[str, Holder] = field(default_factory=dict[str, Holder])
    replaced: dict[str, Holder] = field(default_factory=dict[str, Holder])
    left_out: dict[str, Holder] = field(default_factory=dict[str, Holder])
    given_up: set[str] = field(default_factory=set[str])
    """The messages that notify workers of the waiting jobs that have given up their keys."""

    @property
    def holders(self) -> dict[str, Holder]:
        return self.inserted | self.replaced | self.left_out

    def add(self, other: _Stored) -> None:
        self.inserted.update(other.inserted)
        self.replaced.update(other.replaced)
        self.left_out.update(other.left_out)
        self.given_up.update(other.given_up)

    def change(self, changed: Iterable[tuple[Holder, bool]]) -> None:
        for holder, is_new in changed:
            (self.inserted if is_new else self.replaced)[holder.key] = holder


def _store(jobs: UniqueJobs, policy: Unique, key: str, args: str) -> _Stored:
    """Insert a job if the key is free, otherwise apply the policy to the job that has the key.

    Wait for other transactions that are taking the key or changing the job.
    """
    stored, pause, fruitless = _Stored(), 0.001, 0
    while True:
        inserted = jobs.insert({key: args}, any_conflict=policy.per is not None and fruitless < _FRUITLESS)
        stored.inserted.update({one.key: one for one in inserted})
        if not inserted:
            if policy.replaces and policy.per is None:
                return _change(jobs, {key: args})
            taken = jobs.taken([key])
            _settle(jobs, policy, {key: args}, taken, stored, skip_locked=pause < _LONG)
            fruitless = 0 if taken else fruitless + 1
        if stored.holders:
            return stored
        if not fruitless:
            # another session is claiming or changing the job: look at the job again afterwards
            time.sleep(pause)
            pause = min(2 * pause, _LONG)


def _store_many(jobs: UniqueJobs, policy: Unique, args: Mapping[str, str], known: _Taken, *, in_order: bool) -> _Stored:
    """Enqueue jobs for several keys, like `_store`.

    First take the free keys in the order of `args`, then lock the jobs that have the other keys, in the same order.
    With `in_order`, raise `_Again` instead of waiting for locks in a different order. `known` keeps the found jobs for
    the next turn. If such a job begins to run in the meantime, it still counts as the one that has the key.
    """
    if policy.replaces and policy.per is None:
        return _change(jobs, args)
    stored, pending = _Stored(), {key: args[key] for key in args if key not in known}
    rounds, has_locked = 0, False
    while True:
        if pending:
            rounds += 1
            inserted = jobs.insert(pending, any_conflict=policy.per is not None and rounds < _FRUITLESS)
            stored.inserted.update({one.key: one for one in inserted})
        if not (missing := {key: args[key] for key in args if key not in stored.holders}):
            return stored
        found = jobs.taken(missing.keys() - known.keys())
        taken = {key: known[key] for key in missing if key in known} | found
        if not policy.replaces:
            known.update(found)
        pending = {key: missing[key] for key in missing if key not in taken}
        if pending:
            if in_order and stored.holders:
                raise _Again
            continue
        if in_order and has_locked and any(one.state in LIVE for one, _ in taken.values()):
            raise _Again
        for key in _settle(jobs, policy, args, taken, stored, skip_locked=False):
            known.pop(key, None)
        has_locked = True


def _change(jobs: UniqueJobs, args: Mapping[str, str]) -> _Stored:
    """Insert a job for each free key, change waiting jobs, and insert jobs in place of those that have begun.

    The first statement takes the keys and locks their jobs in the order of `args`. Later statements wait for no lock,
    and see the steps that were stored before it.
    """
    stored = _Stored()
    stored.change(jobs.change(args))
    while held := {key: args[key] for key in args if key not in stored.holders}:
        stored.given_up.update(jobs.give_up(held))
        stored.change(jobs.change_held(held))
    return stored


def _settle(
    jobs: UniqueJobs,
    policy: Unique,
    args: Mapping[str, str],
    taken: _Taken,
    stored: _Stored,
    *,
    skip_locked: bool,
) -> set[str]:
    """Apply the policy to taken keys. Return the keys whose job has ended meanwhile, or is locked elsewhere."""
    live: dict[int, tuple[str, bool]] = {}
    for key, (one, is_of_period) in taken.items():
        if one.state not in LIVE or (one.state == "running" and (is_of_period or not policy.replaces)):
            stored.left_out[key] = one
        else:
            live[one.id] = key, is_of_period
    held = jobs.hold(list(live), skip_locked=skip_locked) if live else []
    if not policy.replaces:
        stored.left_out.update({one.key: one for one in held})
        if missed := [] if skip_locked else list(live.keys() - {one.id for one in held}):
            begun = ((live[one.id][0], one) for one in jobs.begun(missed))
            stored.left_out.update(begun)
    else:
        have_steps = jobs.have_steps([one.id for one in held if one.state in NOT_RUNNING])
        started = [one for one in held if one.state == "running" or one.id in have_steps]
        if waiting := {one.key: args[one.key] for one in held if one not in started}:
            stored.change(jobs.change_held(waiting))
        stored.left_out.update({one.key: one for one in started if live[one.id][1]})
        if free := {one.key: args[one.key] for one in started if not live[one.id][1]}:
            stored.given_up.update(jobs.give_up(free))
            stored.inserted.update({one.key: one for one in jobs.insert(free, any_conflict=True)})
    return taken.keys() - stored.holders.keys()


def _flush_jobs(session: Session, job: type[Any]) -> None:
    """Flush if the session is about to delete or change a job, since that job may be the one with the key."""
    if any(isinstance(one, job) for one in (*session.deleted, *session.dirty)):
        session.flush()


def _as_pending(session: Session, models: Models[Any]) -> AbstractContextManager[Any]:
    """Keep other objects pending until the commit, for its listeners. If the job may refer to their rows, do not."""
    return nullcontext() if models.Job.__table__.foreign_keys else session.no_autoflush


def _exists(task: str, key: str, job: JobMixin) -> JobExists:
    return JobExists(
        f"{task}: job {job.id} ({job.state}) has the unique key {key!r:.200}, and the policy is to raise: take the "
        "job from the error's .job, or enqueue again once it has ended or its period is over",
        job,
    )


def _read_again(session: Session, job: type[Any], job_ids: Iterable[int]) -> None:
    """Expire these jobs in the session now, and again if a savepoint undoes the change."""
    known = [one for one in job_ids if known_row(session, job, one) is not None]
    _expire(session, job, known)
    on_rollback(session, partial(_expire, session, job, known))


def _expire(session: Session, job: type[Any], job_ids: Iterable[int]) -> None:
    for job_id in job_ids:
        if (known := known_row(session, job, job_id)) is not None:
            session.expire(known)
