"""Checks the options of new jobs, and adds jobs to the caller's transaction, one by one or many at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal, TypeVar

import sqlalchemy as sa
from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    InstanceOf,
    PlainValidator,
    SkipValidation,
    with_config,
)
from pydantic_core import from_json, to_json
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session
from typing_extensions import TypedDict

from sqla_jobs.database.commits import savepoint
from sqla_jobs.database.sharding import present_shard, put_into
from sqla_jobs.errors import ArgumentsError
from sqla_jobs.models.columns import JobMixin
from sqla_jobs.models.mapping import Models, columns_of
from sqla_jobs.models.types import PARKED, JobState
from sqla_jobs.models.workflow_columns import BatchMixin
from sqla_jobs.queries.values import TIMES, names
from sqla_jobs.rules.limits import ordered_gate
from sqla_jobs.rules.outcomes import storable
from sqla_jobs.rules.unique import MAX_KEY, RESERVED, Unique
from sqla_jobs.rules.value_checks import INSTANT, check_moment, check_seconds
from sqla_jobs.tasks.after import check_after
from sqla_jobs.tasks.enqueued import Enqueued
from sqla_jobs.tasks.hooks import check_headers
from sqla_jobs.tasks.options import MaxAttempts, MaxLost, Priority, QueueName, as_timedelta, checked, seconds

J = TypeVar("J", bound=JobMixin)
GatesOf = Callable[[Mapping[str, Any]], Sequence[str]]
"""Returns the gates of a job with the given stored arguments."""
T = TypeVar("T")

_ROWS, _BYTES = 5_000, 4 * 1024 * 1024
_BATCH: Any = sa.bindparam("batch", type_=sa.Text)


def _moment(option: str, moment: object) -> datetime:
    if not (isinstance(moment, datetime) and moment.utcoffset() is not None):
        raise ArgumentsError(
            f"{option} must be a datetime with a time zone, such as datetime.now(UTC) + timedelta(hours=1), "
            f"got {moment!r}"
        )
    check_moment(option, moment)
    return moment


def _run_at(moment: object) -> object:
    return PARKED if moment == PARKED else _moment("run_at", moment)


def _expires(limit: object) -> datetime | timedelta:
    if isinstance(limit, datetime):
        return _moment("expires", limit)
    return timedelta(seconds=check_seconds("expires", limit, least=INSTANT))


def _literal(key: str) -> str:
    if key != storable(key, MAX_KEY):
        raise ArgumentsError(f"unique_key={key!r:.60} has a NUL or a surrogate, which PostgreSQL cannot store")
    if key.startswith(RESERVED):
        raise ArgumentsError(
            f"unique_key={key!r:.60} begins with {RESERVED!r}, as the keys do that a Unique makes: choose another one"
        )
    return key


@with_config(ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True))
class EnqueueOptions(TypedDict, total=False):
    """The options of a job, given to `task.options`. For a missing option or None, the task's declaration applies."""

    delay: Annotated[timedelta | float | None, as_timedelta("delay")]
    """The time from now until the job is due, as a timedelta or in seconds. The server's clock measures it. 0 overrides
    the task's delay."""
    run_at: Annotated[datetime | None, PlainValidator(_run_at)]
    """The time at which the job is due, with a time zone."""
    queue: QueueName | None
    """The queue from which workers claim the job."""
    priority: Priority | None
    """The job's priority, from -10 to 10; lower numbers run first."""
    max_attempts: MaxAttempts | None
    """The maximum number of attempts, from 1 to 1,000,000. Attempts lost to crashes count, unless `max_lost` is
    given."""
    max_lost: MaxLost | None
    """The number of lost runs in a row, from 1 to 1,000, after which the job ends as `failed`. With it, an attempt lost
    to a crash does not count toward `max_attempts`."""
    unique_key: Annotated[str, Field(min_length=1, max_length=MAX_KEY), AfterValidator(_literal)] | None
    """A key that at most one live job (blocked, scheduled, queued or running) can have.

    If there is such a job, the enqueue returns it, unless the `Unique` policy decides otherwise.
    """
    unique: InstanceOf[Unique] | None
    """The policy for an enqueue whose key is taken. Without `unique_key`, the policy also makes the key."""
    headers: Annotated[Mapping[str, str] | None, PlainValidator(check_headers)]
    """At most 50 named texts for middleware and the run, separate from the task's arguments."""
    columns: Mapping[str, Any] | None
    """Values for the columns of your own `job_class`."""
    after: SkipValidation[JobMixin | BatchMixin | Sequence[JobMixin | BatchMixin] | None]
    """The jobs and batches that must end before the job starts."""
    if_failed: Literal["cancel", "run", "hold"] | None
    """The handling of the job if a job that it waits for fails, is cancelled or is deleted: "cancel" (the default),
    "run" or "hold"."""
    batch: InstanceOf[BatchMixin] | None
    """The batch that the job joins."""
    timeout: Annotated[float | timedelta | None, seconds("timeout", INSTANT)]
    """The time limit of each attempt, as a timedelta or in seconds."""
    retention: Annotated[timedelta | float | None, seconds("retention")]
    """How long the job is kept after its end, whatever that is, as a timedelta or in seconds."""
    expires: Annotated[datetime | timedelta | float | None, PlainValidator(_expires)]
    """When the job ends as `cancelled` if it has not begun: a datetime with a time zone, or the time from now as a
    timedelta or in seconds, which the server's clock measures."""


def check_options(whose: str, job_class: type[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the checked options that are not None. Raises `ArgumentsError`, whose message begins with `whose`."""
    given = checked(EnqueueOptions, options, whose, ArgumentsError)
    try:
        return _fitting(job_class, given)
    except ArgumentsError as error:
        raise ArgumentsError(f"{whose}: {error}") from None


def _fitting(job_class: type[Any], given: dict[str, Any]) -> dict[str, Any]:
    """Return checked options. Raises `ArgumentsError` if they do not fit each other, or the class of the job."""
    if "delay" in given and "run_at" in given:
        raise ArgumentsError("delay= and run_at= exclude each other: give one")
    if "unique_key" in given and "unique" in given and given["unique"].key is not None:
        raise ArgumentsError(
            f"unique_key={given['unique_key']!r:.60} and Unique(key=…) exclude each other: give one of them"
        )
    check_after(given)
    if given.get("run_at") == PARKED and "after" in given:
        raise ArgumentsError(
            "after= and run_at=PARKED exclude each other: a job that waits for others starts after them; leave one out"
        )
    if "columns" in given:
        own = columns_of(job_class).keys() - _LIBRARY_COLUMNS
        if unknown := sorted(given["columns"].keys() - own):
            raise ArgumentsError(f"columns={unknown}: {job_class.__name__} has no such columns; its own: {sorted(own)}")
    return given


_LIBRARY_COLUMNS = frozenset(name for name in JobMixin.__annotations__) | {"position"}


def job_values(task: str, defaults: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the column values of a new job. A timedelta in `TIMES` counts from now, by the server's clock.

    A job with a `run_at` is `scheduled`, since only the server knows whether it is due.
    """
    chosen = {**defaults, **options}
    later = options["run_at"] if "run_at" in options else chosen.get("delay")
    values = {
        "task": task,
        "queue": chosen["queue"],
        "priority": chosen["priority"],
        "max_attempts": chosen["max_attempts"],
        "state": JobState.scheduled if later else JobState.queued,
        **options.get("columns", {}),
        **{one: chosen[one] for one in ("max_lost", "headers", "on_failure", "timeout", "retention") if one in chosen},
    }
    times = {"run_at": later, "expires_at": options.get("expires")}
    return values | {name: moment for name, moment in times.items() if moment}


def expressed(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return `values`, with each timedelta in `TIMES` as an SQL expression."""
    delays = {name: values[name] for name in TIMES if isinstance(values.get(name), timedelta)}
    return {**values, **{name: sa.func.clock_timestamp() + delay for name, delay in delays.items()}}


def add_one(
    session: Session,
    models: Models[J],
    values: Mapping[str, Any],
    args: dict[str, Any],
    gates_of: GatesOf | None,
) -> J:
    """Add a pending job to the session, and return it."""
    behind: dict[str, Any] = {}
    if gates_of is not None:
        gates = gates_of(args)
        behind = {"gates": [*gates], "ordered_by": ordered_gate(gates)}
    job = models.Job(**values, args=args, **behind)
    job.is_new = True
    if (shard := present_shard(session)) is not None:
        put_into(job, shard)
    session.add(job)
    return job


def add_many(
    session: Session,
    models: Models[Any],
    values: Mapping[str, Any],
    encoded: Iterable[bytes],
    gates_of: GatesOf | None,
    ids: list[int] | None,
) -> Enqueued:
    """Add a job for each JSON object in `encoded`, in order and in constant memory, and count them.

    `ids`, if given, receives the ids of the jobs. An error, even one that `encoded` raises, undoes all inserts of this
    call.
    """
    job = models.Job
    element = sa.func.jsonb_array_elements(sa.cast(_BATCH, JSONB), type_=JSONB).column_valued("element")
    mapper = sa.inspect(job)
    columns = [mapper.columns[name] for name in values]
    selected = [
        value if isinstance(value, sa.ColumnElement) else sa.literal(value, column.type)
        for value, column in zip(values.values(), columns, strict=True)
    ]
    into, given = [*columns, job.args], [*selected, element]
    if gates_of is not None:
        into += [job.gates, job.ordered_by]
        given = [
            *selected,
            element["args"],
            sa.cast(element["gates"].astext, sa.ARRAY(sa.Text)),
            element["ordered_by"].astext,
        ]
        encoded = (_with_gates(item, gates_of) for item in encoded)
    statement: Any = sa.insert(job).from_select(
        into, sa.select(*given)
    )  # the entity instead of the table, so that the session's listeners see the insert
    if ids is not None:
        statement = statement.returning(job.id)
    count = 0
    with savepoint(session, job):
        for batch in batches(encoded, len):
            result = session.execute(
                statement,
                {"batch": "[" + b",".join(batch).decode() + "]"},
                bind_arguments={"mapper": job},
                execution_options={"dml_strategy": "raw"},
            )
            if ids is not None:
                ids += result.scalars()  # rows are inserted one after another, in the order of the array
            count += len(batch)
    return Enqueued(count)


def _with_gates(encoded: bytes, gates_of: GatesOf) -> bytes:
    return b'{"args":' + encoded + b"," + to_json(gate_columns(gates_of(from_json(encoded))))[1:]


def gate_columns(gates: Sequence[str]) -> dict[str, str | None]:
    """Return the columns `gates` and `ordered_by` for JSON, with the array as text."""
    return {"gates": names(tuple(gates)) if gates else None, "ordered_by": ordered_gate(gates)}


def batches(items: Iterable[T], size_of: Callable[[T], int]) -> Iterator[list[T]]:
    """Group items into lists, one for each statement, limited by number and size."""
    batch: list[T] = []
    size = 0
    for item in items:
        batch.append(item)
        size += size_of(item)
        if len(batch) >= _ROWS or size >= _BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
