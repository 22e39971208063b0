"""The columns of the models, as mixins. `mapping.py` maps them on an application's metadata.

Every column has an explicit type, so that an application's `type_annotation_map` changes nothing, and
every one but `Job.task` and `Job.args` has a default in the server, so that a plain INSERT from any
language is a valid enqueue.
"""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy import (
    BigInteger,
    Boolean,
    DateTime,
    Double,
    FromClause,
    Identity,
    Integer,
    SmallInteger,
    Text,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.orm.attributes import instance_state

from sqla_jobs.models.types import MAX_ATTEMPTS, CatchUp, JobState, Overlap, RunAtType, TickOutcome, WordType
from sqla_jobs.rules.outcomes import RunOutcome


def _now() -> Any:
    return func.clock_timestamp()


class Row:
    """Built from keywords, whatever constructor the application's registry has."""

    if TYPE_CHECKING:
        __table__: ClassVar[FromClause]
        __tablename__: ClassVar[str]

    def __init__(self, **values: Any) -> None:
        for name, value in values.items():
            if not hasattr(type(self), name):
                raise TypeError(f"{type(self).__name__} has no column {name!r}")
            setattr(self, name, value)

    def __repr__(self) -> str:
        loaded = instance_state(self).dict
        shown = {key: loaded[key] for key in ("id", "name", "task", "state", "outcome") if key in loaded}
        return f"<{type(self).__name__} {' '.join(f'{key}={value!s}' for key, value in shown.items())}>"


class JobMixin(Row):
    """One enqueued call of a task.

    Subclass it, unmapped, to add columns of your own (nullable, or with a server default) and give the
    class as `Jobs(Base, job_class=…)`. In annotations it stands for `jobs.Job`.

    A flush tells a new one its `id`; what else the server fills in is loaded when it is first read.
    """

    # where an INSERT also asks for that, SQLAlchemy makes the statement anew each time: a tenth of an enqueue
    __mapper_args__: ClassVar[dict[str, Any]] = {"eager_defaults": False}

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    """Given by the database when the job is inserted."""
    task: Mapped[str] = mapped_column(Text, nullable=False)
    """The task's name."""
    queue: Mapped[str] = mapped_column(Text, nullable=False, server_default="default")
    """The queue from which workers claim it."""
    priority: Mapped[int] = mapped_column(SmallInteger, nullable=False, server_default=text("0"))
    """From -10 to 10; lower runs first."""
    args: Mapped[dict[str, Any]] = mapped_column(JSONB, nullable=False)
    """The task's arguments as a JSON object, by name; `"(erased)"` where they were erased."""
    # 'scheduled' and due at once, so that an INSERT that gives only run_at is not run before it
    state: Mapped[JobState] = mapped_column(WordType(JobState), nullable=False, server_default="scheduled")
    """Where the job stands; a new row is `scheduled`, and becomes `queued` when it is due."""
    run_at: Mapped[datetime] = mapped_column(RunAtType, nullable=False, server_default=_now())
    """When a scheduled job is due. 'infinity' in the database parks it; here that is the last day of the year 9999."""
    attempt: Mapped[int] = mapped_column(Integer, nullable=False, server_default=text("0"))
    """Number of the current or last attempt; 0 before the first."""
    max_attempts: Mapped[int] = mapped_column(Integer, nullable=False, server_default=text(str(MAX_ATTEMPTS)))
    """The attempt after which a failure is final."""
    current_run_id: Mapped[int | None] = mapped_column(BigInteger)
    """The lease of the attempt in progress, which becomes the `id` of its run; null unless running."""
    process_id: Mapped[uuid.UUID | None] = mapped_column(Uuid)
    """The process that runs it; null unless running."""
    gates: Mapped[list[str] | None] = mapped_column(ARRAY(Text(collation="C")))
    """What limits its start, such as `#stripe` or `#mail=17`; null where nothing does."""
    ordered_by: Mapped[str | None] = mapped_column(Text(collation="C"))
    """The one of its gates whose jobs start in the order of their positions."""
    unique_key: Mapped[str | None] = mapped_column(Text)
    """At most one live job (scheduled, queued or running) has this key."""
    unique_period: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    """The start of the period in which no other job may take the key, also once this one has ended."""
    headers: Mapped[dict[str, str] | None] = mapped_column(JSONB(none_as_null=True))
    """What middleware and traces carry along from the enqueue to the runs, as a JSON object; null where nothing."""
    on_failure: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    """The job that is enqueued once this one has failed for good: its `task`, `queue`, `priority`, `max_attempts`, and
    the `argument` that is this job's id."""
    progress: Mapped[float | None] = mapped_column(Double)
    """From 0 to 1, as the current or last attempt reported it."""
    progress_message: Mapped[str | None] = mapped_column(Text)
    """The text reported with `progress`."""
    cancel_requested_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    """When somebody asked a running job to stop."""
    kill_requested: Mapped[bool] = mapped_column(Boolean, nullable=False, server_default=text("false"))
    """Whether the process of a running job is to be killed if the job does not stop."""
    schedule_id: Mapped[int | None] = mapped_column(BigInteger)
    """The schedule that enqueued it."""
    scheduled_for: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    """The tick of that schedule."""
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), nullable=False, server_default=_now())
    """When the row was inserted."""
    started_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    """When the current or last attempt was claimed."""
    finished_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    """When the job ended as succeeded, failed or cancelled."""
    position: Mapped[int] = mapped_column(BigInteger, Identity(), nullable=False)
    """Its place in the queue: a new one from the same sequence each time it becomes queued, so positions only grow."""
    times_replaced: Mapped[int | None] = mapped_column(Integer)
    """How many enqueues of its unique key have replaced or updated it; null where none has, which costs no space."""

    if TYPE_CHECKING:
        runs: Mapped[list[RunMixin]]
        """Its attempts, oldest first; read only."""

    @property
    def result(self) -> Any:
        """The result of its last run, decoded from JSON; `None` while there is none."""
        return self.runs[-1].result if self.runs else None


class RunMixin(Row):
    """One attempt at a job, written when the attempt ends."""

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    """The lease under which the attempt ran: taken from the sequence when the job is claimed."""
    job_id: Mapped[int] = mapped_column(BigInteger, nullable=False)
    """The job, which may have been deleted since."""
    attempt: Mapped[int] = mapped_column(Integer, nullable=False)
    """Number of the attempt, from 1."""
    process_id: Mapped[uuid.UUID | None] = mapped_column(Uuid)
    """The process that ran it."""
    started_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), nullable=False, server_default=_now())
    """When the attempt began to run."""
    finished_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), nullable=False, server_default=_now())
    """When the attempt ended."""
    outcome: Mapped[RunOutcome] = mapped_column(WordType(RunOutcome), nullable=False)
    """How the attempt ended."""
    result: Mapped[Any] = mapped_column(JSONB(none_as_null=True), nullable=True)
    """What the task returned, as JSON; null where it returned nothing or did not succeed."""
    error_type: Mapped[str | None] = mapped_column(Text)
    """Name of the exception, such as `ValueError`."""
    error: Mapped[str | None] = mapped_column(Text)
    """The exception's message."""
    traceback: Mapped[str | None] = mapped_column(Text)
    """The exception's traceback, without the values of sensitive arguments."""
    untold_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    """When handlers are told of a failed or lost attempt, unless its own process does so first; null once they are."""

    if TYPE_CHECKING:
        job: Mapped[JobMixin | None]
        """The job it was an attempt at; read only."""


class ScheduleMixin(Row):
    """A cron rule that enqueues jobs."""

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    """Given by the database when the schedule is inserted."""
    name: Mapped[str] = mapped_column(Text, nullable=False)
    """Unique among schedules; code and operators refer to it."""
    task: Mapped[str] = mapped_column(Text, nullable=False)
    """Name of the task that it enqueues."""
    cron: Mapped[str] = mapped_column(Text, nullable=False)
    """The rule: five fields, six with seconds first, or `@every SECONDS`."""
    timezone: Mapped[str] = mapped_column(Text, nullable=False, server_default="UTC")
    """The IANA time zone in which the rule is read."""
    args: Mapped[dict[str, Any]] = mapped_column(JSONB, nullable=False, server_default=text("'{}'"))
    """Arguments of each job, as a JSON object."""
    queue: Mapped[str] = mapped_column(Text, nullable=False, server_default="default")
    """The queue of its jobs."""
    priority: Mapped[int] = mapped_column(SmallInteger, nullable=False, server_default=text("0"))
    """The priority of its jobs, from -10 to 10; lower runs first."""
    catch_up: Mapped[CatchUp] = mapped_column(WordType(CatchUp), nullable=False, server_default="latest")
    """What happens to ticks that no clock was there to fire."""
    overlap: Mapped[Overlap] = mapped_column(WordType(Overlap), nullable=False, server_default="allow")
    """Whether a tick fires while an earlier tick's job has not ended."""
    jitter: Mapped[float] = mapped_column(Double, nullable=False, server_default=text("0"))
    """Each job is due up to that many seconds after its tick."""
    enabled: Mapped[bool] = mapped_column(Boolean, nullable=False, server_default=text("true"))
    """Whether it fires."""
    disabled_reason: Mapped[str | None] = mapped_column(Text)
    """Why it is disabled; shown by the dashboard and the command line."""
    next_run_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    """The next tick; worked out by the clock, also after `cron` or `timezone` was changed."""
    last_run_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    """The last tick for which a job was enqueued."""
    declared: Mapped[bool] = mapped_column(Boolean, nullable=False, server_default=text("false"))
    """Whether code declared it; otherwise an operator did."""
    declared_values: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    """What code said last: a value that differs from it was set by an operator."""
    declared_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    """When a process last had it in its code."""
    retired_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    """When it was disabled because no code declares it any more."""
    planned_rule: Mapped[str | None] = mapped_column(Text)
    """The rule for which `next_run_at` was worked out."""


class TickMixin(Row):
    """What became of a tick of a schedule, or of several in a row that were missed. The clock only adds rows."""

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    """Given by the database when the row is inserted."""
    schedule_id: Mapped[int] = mapped_column(BigInteger, nullable=False)
    """The schedule, which may have been removed since."""
    scheduled_for: Mapped[datetime] = mapped_column(DateTime(timezone=True), nullable=False, server_default=_now())
    """The tick; of several the first."""
    until: Mapped[datetime] = mapped_column(DateTime(timezone=True), nullable=False, server_default=_now())
    """The last of several ticks, else the same as `scheduled_for`."""
    count: Mapped[int | None] = mapped_column(Integer, server_default=text("1"))
    """How many ticks these are; null where they are too many to be counted."""
    outcome: Mapped[TickOutcome] = mapped_column(WordType(TickOutcome), nullable=False)
    """`enqueued`; `skipped`, since a job had not ended or had its key; or `missed`, since no clock came in time."""
    job_id: Mapped[int | None] = mapped_column(BigInteger)
    """The job that was enqueued, or for which the tick was skipped; it may have been deleted since."""
    at: Mapped[datetime] = mapped_column(DateTime(timezone=True), nullable=False, server_default=_now())
    """When a clock came to it."""


class ProcessMixin(Row):
    """One live worker or clock. It is alive while `heartbeat_at` is younger than `lease` seconds."""

    id: Mapped[uuid.UUID] = mapped_column(
        Uuid, primary_key=True, server_default=text("gen_random_uuid()"), default=uuid.uuid4
    )
    """Made by the process when it starts."""
    kind: Mapped[str] = mapped_column(Text, nullable=False, server_default="worker")
    """`worker` or `clock`."""
    host: Mapped[str] = mapped_column(Text, nullable=False, server_default="")
    """Name of its host."""
    pid: Mapped[int] = mapped_column(Integer, nullable=False, server_default=text("0"))
    """Its process id on that host."""
    queues: Mapped[dict[str, int]] = mapped_column(JSONB, nullable=False, server_default=text("'{}'"))
    """Name and concurrency of each queue it serves."""
    tasks: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    """The tasks that a worker knows, by name and alias, and what its code takes; null where that is not told."""
    set_aside: Mapped[dict[str, str]] = mapped_column(JSONB, nullable=False, server_default=text("'{}'"))
    """What the server does not let it change, such as `job 17`, and why; and what holds up its `event loop`."""
    connections: Mapped[int] = mapped_column(Integer, nullable=False, server_default=text("0"))
    """Connections to the server that it may use at once, with those of the jobs that it runs."""
    version: Mapped[str] = mapped_column(Text, nullable=False, server_default="")
    """The version of this library that it runs."""
    clock_offset: Mapped[float | None] = mapped_column(Double)
    """Seconds by which the clock of its host is ahead of the server's; negative where it is behind."""
    last_finished_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    """When a job last ended in it, stored within some seconds; null before the first."""
    stalled_since: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    """Since when no Python code of it has run, as its parent process sees that; null while it makes progress."""
    lease: Mapped[float] = mapped_column(Double, nullable=False, server_default=text("30"))
    """Seconds without a heartbeat after which it is taken for dead."""
    started_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), nullable=False, server_default=_now())
    """When it registered."""
    heartbeat_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), nullable=False, server_default=_now())
    """Its last heartbeat."""


class QueueMixin(Row):
    """What an operator said about a queue; a queue without a row is neither paused nor limited."""

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    """The queue's name."""
    paused_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    """When the queue was paused; null where it is not."""
    paused_until: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    """When claiming goes on by itself; null where somebody has to resume it."""
    pause_reason: Mapped[str | None] = mapped_column(Text)
    """Why it was paused."""


class PausedTaskMixin(Row):
    """A task whose jobs are not claimed; one with aliases has a row for each of its names."""

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    """The task's name, or an alias of it."""
    paused_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), nullable=False, server_default=_now())
    """When the task was paused."""
    paused_until: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    """When claiming goes on by itself; null where somebody has to resume it."""
    pause_reason: Mapped[str | None] = mapped_column(Text)
    """Why it was paused."""


class LimitMixin(Row):
    """How many jobs may run at once behind a gate, or start in a time. Code declares it, operators override it."""

    gate: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)
    """Such as `#stripe`; `#mail=` for each key by itself, `#mail=17` for one; `@mail` for a queue."""
    running: Mapped[int | None] = mapped_column(Integer)
    """Jobs that may run at once; null where that is not limited."""
    rate: Mapped[int | None] = mapped_column(Integer)
    """Jobs that may start in any `per` seconds; null where that is not limited."""
    per: Mapped[float | None] = mapped_column(Double)
    """Seconds."""
    hold: Mapped[bool] = mapped_column(Boolean, nullable=False, server_default=text("false"))
    """Whether an ordered job that failed keeps the next ones of its key waiting."""
    tasks: Mapped[list[str]] = mapped_column(ARRAY(Text), nullable=False, server_default=text("'{}'"))
    """The names of the tasks whose jobs it limits."""
    declared: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    """What code says; null where no code does."""
    set_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    """When an operator overrode that; null where code decides."""
    changed_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), nullable=False, server_default=_now())
    """When its numbers or its tasks last changed."""


class StartMixin(Row):
    """Jobs that started behind a gate with a rate, at one moment. Rows are only added, and deleted when they are old.

    What somebody took by `Jobs.spend` counts as jobs here.
    """

    gate: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)
    """Such as `%stripe`."""
    started_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), primary_key=True)
    """When they started."""
    total: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    """How many have started there so far, these included."""
    count: Mapped[int] = mapped_column(Integer, nullable=False)
    """How many started at this moment."""


class AuditMixin(Row):
    """One change that a person made on the dashboard or the command line: who, when, what. Rows are only ever added."""

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    """Given by the database when the line is added."""
    at: Mapped[datetime] = mapped_column(DateTime(timezone=True), nullable=False, server_default=_now())
    """When the change was made."""
    actor: Mapped[str] = mapped_column(Text, nullable=False, server_default="")
    """Who made it, as the application names the visitor."""
    action: Mapped[str] = mapped_column(Text, nullable=False, server_default="")
    """Such as `retry`."""
    subject: Mapped[str] = mapped_column(Text, nullable=False, server_default="")
    """Such as `job 17`."""
    details: Mapped[dict[str, Any]] = mapped_column(JSONB, nullable=False, server_default=text("'{}'"))
    """What was changed, as a JSON object."""
