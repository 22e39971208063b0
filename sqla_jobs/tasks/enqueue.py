"""Puts jobs into the caller's transaction: one by one, one per unique key, or many at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime, timedelta
from typing import Any, TypedDict, TypeVar

from pydantic_core import from_json, to_json
from sqlalchemy import ARRAY, ColumnElement, Text, bindparam, cast, func, insert, inspect, literal, select, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql import insert as insert_or_skip
from sqlalchemy.orm import Session, scoped_session
from sqlalchemy.orm.attributes import instance_state

from sqla_jobs.calls.values import PRIORITIES, names
from sqla_jobs.database.engines import is_asynchronous
from sqla_jobs.database.notify import after_commit
from sqla_jobs.errors import ArgumentsError, JobsError
from sqla_jobs.models.columns import JobMixin
from sqla_jobs.models.mapping import Models
from sqla_jobs.models.types import HAS_LIVE_KEY, PARKED, JobState
from sqla_jobs.queries.unique import hold_unique
from sqla_jobs.rules.checks import check_integer, check_moment, check_queue, check_seconds
from sqla_jobs.rules.limits import ordered_gate
from sqla_jobs.rules.outcomes import storable

J = TypeVar("J", bound=JobMixin)
AnySession = Session | scoped_session[Any]

_ROWS, _BYTES = 5_000, 4 * 1024 * 1024
_LONG = 0.5
"""Seconds; a pause of that length follows a second of waiting for somebody else's lock."""
_BATCH: Any = bindparam("batch", type_=Text)


class EnqueueOptions(TypedDict, total=False):
    """How one job is enqueued; each left out, or `None`, is as the task was declared."""

    delay: timedelta | float | None
    """From now, by the server's clock; a number is seconds."""
    run_at: datetime | None
    """Not before this moment; with a time zone."""
    queue: str | None
    """The queue from which workers claim it."""
    priority: int | None
    """From -10 to 10, lower runs first."""
    max_attempts: int | None
    """From 1 to 1,000,000; attempts lost to crashes count."""
    unique_key: str | None
    """At most one live job (scheduled, queued or running) has this key; it is returned if there is one."""
    columns: Mapping[str, Any] | None
    """Values for the columns of your own `job_class`."""


def plain_session(session: AnySession | None) -> Session:
    """The `Session` behind what applications pass around."""
    if isinstance(session, Session):
        return session
    if isinstance(session, scoped_session):
        inner: Session = session()
        return inner
    if is_asynchronous(type(session)):
        raise ArgumentsError(
            "an AsyncSession cannot enqueue: write await session.run_sync(lambda s: task.enqueue(s, …))"
        )
    if session is None:
        raise ArgumentsError("the Session to enqueue in is missing: pass it as the first argument, enqueue(session, …)")
    raise ArgumentsError(f"the first argument must be the Session to enqueue in, got {type(session).__name__}")


def check_options(job_class: type[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` without its `None`s. Raises `ArgumentsError` for what no job could have."""
    unknown = options.keys() - EnqueueOptions.__annotations__.keys()
    if unknown:
        raise ArgumentsError(
            f"unknown option {min(unknown)!r}; valid options: {', '.join(EnqueueOptions.__annotations__)}"
        )
    given = {name: value for name, value in options.items() if value is not None}
    if "delay" in given:
        if "run_at" in given:
            raise ArgumentsError("delay= and run_at= exclude each other: give one")
        given["delay"] = timedelta(seconds=check_seconds("delay", given["delay"]))
    run_at = given.get("run_at")
    if run_at is not None and not (isinstance(run_at, datetime) and run_at.utcoffset() is not None):
        raise ArgumentsError(
            "run_at must be a datetime with a time zone, such as datetime.now(UTC) + timedelta(hours=1), "
            f"got {run_at!r}"
        )
    if run_at is not None and run_at != PARKED:
        check_moment("run_at", run_at)
    check_common(given)
    key = given.get("unique_key")
    if key is not None and not (isinstance(key, str) and 0 < len(key) <= 500 and key == storable(key, 500)):
        raise ArgumentsError(f"unique_key must be 1 to 500 characters without NUL and surrogates, got {key!r:.60}")
    if not isinstance(given.get("columns", {}), Mapping):
        raise ArgumentsError(
            f"columns must be a mapping from names of your own columns to values, got {type(given['columns']).__name__}"
        )
    own = set(inspect(job_class).column_attrs.keys()) - _LIBRARY_COLUMNS
    for name in given.get("columns", {}):
        if name not in own:
            raise ArgumentsError(
                f"columns={{{name!r}: …}}: {job_class.__name__} has no such column of its own"
                + (f"; it has {', '.join(sorted(own))}" if own else "; give Jobs(…, job_class=…) to add some")
            )
    return given


_LIBRARY_COLUMNS = frozenset(name for name in JobMixin.__annotations__) | {"position"}


def check_common(given: Mapping[str, Any]) -> None:
    """The options that a task's declaration has too."""
    check_queue(given.get("queue", "default"))
    check_integer("priority", given.get("priority", 0), least=PRIORITIES[0], most=PRIORITIES[-1])
    check_integer("max_attempts", given.get("max_attempts", 1), least=1, most=1_000_000)


def _values(task: str, defaults: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Column values of a new job. One with a time is `scheduled`: only the server knows whether it is due."""
    chosen = {**defaults, **options}
    later = options.get("delay") or options.get("run_at") is not None
    values = {
        "task": task,
        "queue": chosen["queue"],
        "priority": chosen["priority"],
        "max_attempts": chosen["max_attempts"],
        "state": JobState.scheduled if later else JobState.queued,
        "unique_key": options.get("unique_key"),
        **options.get("columns", {}),
    }
    if options.get("delay"):
        values["run_at"] = func.clock_timestamp() + options["delay"]
    elif later:
        values["run_at"] = options["run_at"]
    return values


def _behind(gates: Sequence[str]) -> dict[str, Any]:
    """Column values of a job with gates; a plain one says nothing of them."""
    return {"gates": [*gates], "ordered_by": ordered_gate(gates)} if gates else {}


def add_one(
    session: Session,
    models: Models[J],
    task: str,
    defaults: Mapping[str, Any],
    options: Mapping[str, Any],
    args: dict[str, Any],
    gates: Sequence[str],
) -> J:
    """A job pending in the session; with a `unique_key`, inserted at once or the live one of that key."""
    values = {**_values(task, defaults, options), "args": args, **_behind(gates)}
    after_commit(session, models.Job, models.channel, str(values["queue"]))
    if values["unique_key"] is not None:
        # what else is pending stays so, for the listeners of the commit; but for rows to which the job may refer
        with nullcontext() if models.tables["jobs"].foreign_keys else session.no_autoflush:
            return _unique(session, models, values)
    job = models.Job(**values)
    session.add(job)
    return job


def _unique(session: Session, models: Models[J], values: dict[str, Any]) -> J:
    job = models.Job
    key: str = values["unique_key"]
    statement = (
        insert_or_skip(job)
        .values(**values)
        .on_conflict_do_nothing(
            index_elements=[job.unique_key],
            index_where=text(HAS_LIVE_KEY),
        )
        .returning(job.id)
    )
    pause = 0.001
    while True:
        inserted = session.scalar(statement)
        if inserted is not None:
            return _load(session, job, inserted)
        while (found := hold_unique(session, job, key, skip_locked=pause < _LONG)) is not None:
            job_id, settled = found
            if settled:
                return _load(session, job, job_id)
            # somebody is claiming or changing it this very moment: what it is when they are done decides
            time.sleep(pause)
            pause *= 2


def _load(session: Session, job: type[J], job_id: int) -> J:
    """The entity as the database has it now, keeping changes of the caller's that are not flushed yet."""
    known = session.identity_map.get(session.identity_key(job, job_id))
    found = session.get(job, job_id)
    if found is None:
        raise JobsError(f"job {job_id} was deleted while it was being returned; enqueue it again")
    if known is not None:
        state = instance_state(found)
        names = [column.key for column in state.mapper.column_attrs]
        unchanged = [name for name in names if not state.attrs[name].history.has_changes()]
        session.refresh(found, unchanged)
    return found


def add_many(
    session: Session,
    models: Models[Any],
    task: str,
    defaults: Mapping[str, Any],
    options: Mapping[str, Any],
    encoded: Iterable[bytes],
    gates_of: Callable[[dict[str, Any]], list[str]] | None,
) -> int:
    """One job for each JSON object of `encoded`, in order, in flat memory. Returns how many.

    All or nothing: an error, also one that `encoded` raises, takes back what this call inserted.
    """
    if "unique_key" in options:
        raise ArgumentsError("enqueue_many takes no unique_key: at most one of its jobs could be enqueued")
    job = models.Job
    values = _values(task, defaults, options)
    values.pop("unique_key")
    element = func.jsonb_array_elements(cast(_BATCH, JSONB), type_=JSONB).column_valued("element")
    mapper = inspect(job)
    columns = [mapper.columns[name] for name in values]
    selected = [
        value if isinstance(value, ColumnElement) else literal(value, column.type)
        for value, column in zip(values.values(), columns, strict=True)
    ]
    into, given = [*columns, job.args], [*selected, element]
    if gates_of is not None:
        into += [job.gates, job.ordered_by]
        given = [*selected, element["args"], cast(element["gates"].astext, ARRAY(Text)), element["ordered_by"].astext]
        encoded = (_with_gates(item, gates_of) for item in encoded)
    statement = insert(mapper.local_table).from_select(into, select(*given))
    count = 0
    with session.begin_nested():
        for batch in _batches(encoded):
            session.execute(
                statement,
                {"batch": "[" + b",".join(batch).decode() + "]"},
                bind_arguments={"mapper": job},
            )
            count += len(batch)
    after_commit(session, job, models.channel, values["queue"])
    return count


def _with_gates(encoded: bytes, gates_of: Callable[[dict[str, Any]], list[str]]) -> bytes:
    gates = gates_of(from_json(encoded))
    beside = to_json({"gates": names(tuple(gates)), "ordered_by": ordered_gate(gates)})
    return b'{"args":' + encoded + b"," + beside[1:]


def _batches(encoded: Iterable[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    for item in encoded:
        batch.append(item)
        size += len(item)
        if len(batch) >= _ROWS or size >= _BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
