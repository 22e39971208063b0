"""Enqueues jobs with unique keys in the caller's transaction. If a key is taken, the policy applies."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
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
from sqla_jobs.models.types import NOT_RUNNING
from sqla_jobs.queries.unique import Holder, UniqueJobs, statements_for
from sqla_jobs.rules.unique import Unique
from sqla_jobs.tasks.declaration import Declaration
from sqla_jobs.tasks.enqueue import GatesOf, add_one, batches, expressed, gate_columns
from sqla_jobs.tasks.enqueued import Enqueued
from sqla_jobs.tasks.unique import Keyed, UniqueRule, declared_rule, literal_rule

J = TypeVar("J", bound=JobMixin)

_FRUITLESS = 20
"""If a key is neither free nor taken for this many rounds, a unique index of the application must be the cause."""


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
            stored = _store(jobs, rule.policy, {key: args})
            if key in stored.inserted:
                job: J | None = _new(jobs, stored.inserted[key].id, key, args)
            else:
                found = stored.found[key]
                job = _read(jobs, found.id)
                if job is not None and job.state in NOT_RUNNING and found.state not in NOT_RUNNING:
                    continue  # it waits for its retry since then, and is not locked
            if job is not None:  # otherwise it has been deleted since
                break
    _overtake(jobs, [key])
    return job, len(stored.inserted)


def _new(jobs: UniqueJobs, job_id: int, key: str, args: str) -> Any:
    """Return the object of a new job, like one after a flush: what it was not given is loaded when it is read."""
    known = {name: one for name, one in jobs.values.items() if not isinstance(one, sa.ColumnElement | timedelta)}
    job = jobs.statements.models.Job(**known, id=job_id, args=from_json(args), unique_key=key)
    put_into(job, present_shard(jobs.session))
    make_transient_to_detached(job)
    jobs.session.add(job)
    job.is_new = True
    _expire_on_rollback(jobs.session, type(job), [job_id])
    return job


def _read(jobs: UniqueJobs, job_id: int) -> Any:
    """Return the job as it is in the database; None if it has been deleted."""
    session, job_class = jobs.session, jobs.statements.models.Job
    job = session.get(job_class, job_id, populate_existing=True, identity_token=present_shard(session))
    if job is not None:
        job.is_new = False
        _expire_on_rollback(session, job_class, [job_id])
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
            _add_batch(jobs, rule.policy, batch, ids) for batch in batches(items, lambda item: len(item.args))
        )


def _unique_jobs(
    session: Session,
    models: Models[Any],
    values: Mapping[str, Any],
    policy: Unique,
    gates_of: GatesOf | None,
) -> UniqueJobs:
    statements = statements_for(models, policy, values, gated=gates_of is not None)
    return UniqueJobs(session, statements, values, None if gates_of is None else partial(_gate_columns, gates_of))


def _gate_columns(gates_of: GatesOf, args: str) -> Mapping[str, str | None]:
    return gate_columns(gates_of(json.loads(args)))


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


class _Overtaken(NamedTuple):
    """Keys that the transaction has taken at once, after it had enqueued them for the last moment."""

    channel: str
    keys: Iterable[str]


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
    first = group[0]
    jobs = _unique_jobs(session, first.models, first.values, first.policy, first.gates_of)
    args, stored = {str(one.key): one.args for one in group}, _Stored({}, {})
    # one statement that replaces takes all keys in their order; the others take one key after the other
    for part in [args] if first.policy.replaces else [{key: one} for key, one in args.items()]:
        inserted, found = _store(jobs, first.policy, part)
        stored.inserted.update(inserted)
        stored.found.update(found)
    _read_again(jobs, stored.found)
    first.inserted(session, len(stored.inserted))


def _add_batch(jobs: UniqueJobs, policy: Unique, batch: list[Keyed], ids: list[int] | None) -> Enqueued:
    keyed = [(key, args) for key, args in batch if key is not None]
    order = keyed if policy.replaces else reversed(keyed)  # the dict keeps the last entry for each key
    chosen = dict(sorted(dict(order).items()))
    stored = _store_in_order(jobs, policy, chosen)
    _overtake(jobs, chosen)
    if policy.on_conflict == "raise" and len(chosen) < len(keyed):
        key = Counter(key for key, _ in keyed).most_common(1)[0][0]
        raise ArgumentsError(
            f"{jobs.values['task']}: two of the items have the unique key {key!r:.200}, "
            "and its policy is to raise: leave one of them out"
        )
    plain = jobs.insert_plain([args for key, args in batch if key is None]) if len(keyed) < len(batch) else []
    if ids is not None:
        holders, others = stored.inserted | stored.found, iter(plain)
        ids += (next(others) if key is None else holders[key].id for key, _ in batch)
    inserted = len(stored.inserted) + len(plain)
    if not policy.replaces:
        return Enqueued(inserted, skipped=len(batch) - inserted)
    _read_again(jobs, stored.found)
    return Enqueued(inserted, replaced=len(batch) - inserted)


class _Stored(NamedTuple):
    """The job that has each key now."""

    inserted: dict[str, Holder]
    found: dict[str, Holder]
    """The jobs that had their keys before: replaced, or unchanged."""


class _Again(Exception):
    """Raised to roll back what was stored for some keys and begin again: it would now take a key out of order."""


def _store_in_order(jobs: UniqueJobs, policy: Unique, args: Mapping[str, str]) -> _Stored:
    """Call `_store`, in a savepoint that is rolled back when it has to begin again."""
    rounds = 0
    while True:
        with suppress(_Again), savepoint(jobs.session, jobs.statements.models.Job):
            return _store(jobs, policy, args, rounds)
        rounds += 1


def _store(jobs: UniqueJobs, policy: Unique, args: Mapping[str, str], rounds: int = 0) -> _Stored:
    """Insert a job for each free key in `args`, which maps sorted keys to arguments, and find those of the other keys.

    Wait for other transactions that are taking a key or changing its job. Raises `JobExists` if the policy is to raise,
    and `_Again` if a job has ended meanwhile, whose key comes before others that are taken. `rounds` is the number of
    earlier tries.
    """
    models, stored, began = jobs.statements.models, _Stored({}, {}), rounds
    while missing := {key: args[key] for key in args if key not in stored.inserted and key not in stored.found}:
        if rounds > began and len(args) > 1 and not policy.replaces:
            raise _Again
        rounds += 1
        messages = set[str]()
        if not policy.replaces:
            is_any = policy.per is not None and rounds < _FRUITLESS
            stored.inserted.update({one.key: one for one in jobs.insert(missing, any_conflict=is_any)})
            stored.found.update(jobs.hold(missing.keys() - stored.inserted.keys()))
        else:
            # the first statement takes the keys and locks their jobs, so that the later ones see all stored steps
            if rounds > 1:
                messages.update(jobs.give_up(missing))
            for one, is_new in jobs.change(missing, has_begun=rounds > 1):
                (stored.inserted if is_new else stored.found)[one.key] = one
        messages.update(one.message for one in stored.found.values() if one.state in NOT_RUNNING)
        for message in messages:  # workers skip these jobs as long as this transaction locks them
            after_release(jobs.session, models.Job, models.channel, message)
        _check(jobs, policy, stored)
    return stored


def _check(jobs: UniqueJobs, policy: Unique, stored: _Stored) -> None:
    """Raise `JobExists` for a taken key if the policy is to raise, or its job is not in the batch of the new job.

    The batch would be without that job, and whoever waits for the batch would not wait for it. A job that has been
    deleted since is forgotten.
    """
    task, batch_id = jobs.values["task"], jobs.values.get("batch_id")
    for key, one in list(stored.found.items()):
        if policy.on_conflict != "raise" and batch_id in (None, one.batch_id):
            continue
        if (job := _read(jobs, one.id)) is None:
            del stored.found[key]
        elif policy.on_conflict == "raise":
            raise JobExists(
                f"{task}: job {one.id} ({job.state}) has the unique key {key!r:.200}, and the policy is to raise: take "
                "the job from the error's .job, or enqueue again once it has ended or its period is over",
                job,
            )
        else:
            raise JobExists(
                f"{task}: job {one.id} ({one.state}) has the unique key {key!r:.200} and is not in "
                f"batch {batch_id}, so the batch would not wait for it: enqueue what waits for both with "
                "after=[batch, job], with the error's .job, or enqueue without batch=",
                job,
            )


def _flush_jobs(session: Session, job: type[Any]) -> None:
    """Flush if the session is about to delete or change a job, since that job may be the one with the key."""
    if any(isinstance(one, job) for one in (*session.deleted, *session.dirty)):
        session.flush()


def _as_pending(session: Session, models: Models[Any]) -> AbstractContextManager[Any]:
    """Keep other objects pending until the commit, for its listeners. If the job may refer to their rows, do not."""
    return nullcontext() if models.Job.__table__.foreign_keys else session.no_autoflush


def _read_again(jobs: UniqueJobs, changed: Mapping[str, Holder]) -> None:
    """Expire these jobs in the session now, and again if a savepoint undoes the change."""
    session, job = jobs.session, jobs.statements.models.Job
    known = [one.id for one in changed.values() if known_row(session, job, one.id) is not None]
    _expire(session, job, known)
    _expire_on_rollback(session, job, known)


def _expire_on_rollback(session: Session, job: type[Any], job_ids: Sequence[int]) -> None:
    """Expire these jobs if a savepoint undoes their change. Otherwise they would keep rolled-back values."""
    on_rollback(session, partial(_expire, session, job, job_ids))


def _expire(session: Session, job: type[Any], job_ids: Iterable[int]) -> None:
    for job_id in job_ids:
        if (known := known_row(session, job, job_id)) is not None:
            session.expire(known)
