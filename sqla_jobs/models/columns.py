"""The columns of the models, as mixin classes, which `mapping.py` maps on an application's metadata.

Every column has an explicit type, so that an application's `type_annotation_map` has no effect on it. Every column of a
job except `task` and `args` has a server default or is nullable, so that a plain INSERT from any language is a valid
enqueue.
"""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, mapped_column

from sqla_jobs.models.row import Row, now
from sqla_jobs.models.types import MAX_ATTEMPTS, CatchUp, IfFailed, JobState, Overlap, RunAtType, TickOutcome, WordType
from sqla_jobs.rules.outcomes import RunOutcome


class JobMixin(Row):
    """One enqueued call of a task.

    To add your own columns (nullable, or with a server default), subclass `JobMixin`, leave the subclass unmapped, and
    pass it as `Jobs(Base, job_class=…)`. In annotations, use `JobMixin` for `jobs.Job`.

    A flush sets a new job's `id`. Other values set by the server are loaded when they are first read.
    """

    # eager defaults would make SQLAlchemy recompile the INSERT each time, at a tenth of an enqueue's cost
    __mapper_args__: ClassVar[dict[str, Any]] = {"eager_defaults": False}

    id: Mapped[int] = mapped_column(sa.BigInteger, sa.Identity(), primary_key=True)
    """Assigned by the database when the job is inserted."""
    task: Mapped[str] = mapped_column(sa.Text, nullable=False)
    """The task's name."""
    queue: Mapped[str] = mapped_column(sa.Text, nullable=False, server_default="default")
    """The queue from which workers claim the job."""
    priority: Mapped[int] = mapped_column(sa.SmallInteger, nullable=False, server_default=sa.text("0"))
    """The job's priority, from -10 to 10; lower values run first."""
    args: Mapped[dict[str, Any]] = mapped_column(JSONB, nullable=False)
    """The task's arguments as a JSON object, by name; `{"(erased)": true}` if they were erased."""
    # by default scheduled and due at once, so that a job inserted with only run_at does not start before that time
    state: Mapped[JobState] = mapped_column(WordType(JobState), nullable=False, server_default="scheduled")
    """The state of the job. A new row is `scheduled`, and becomes `queued` when it is due."""
    run_at: Mapped[datetime] = mapped_column(RunAtType, nullable=False, server_default=now())
    """When a scheduled job is due. 'infinity' in the database parks the job.

    In Python, the value is the last day of the year 9999.
    """
    attempt: Mapped[int] = mapped_column(sa.Integer, nullable=False, server_default=sa.text("0"))
    """The number of the current or last attempt; 0 before the first."""
    max_attempts: Mapped[int] = mapped_column(sa.Integer, nullable=False, server_default=sa.text(str(MAX_ATTEMPTS)))
    """The attempt after which a failure is final."""
    current_run_id: Mapped[int | None] = mapped_column(sa.BigInteger)
    """The lease of the current attempt, which becomes the `id` of that attempt's run. Null unless running."""
    process_id: Mapped[uuid.UUID | None] = mapped_column(sa.Uuid)
    """The process that is running the job. Null unless running."""
    gates: Mapped[list[str] | None] = mapped_column(ARRAY(sa.Text(collation="C")))
    """The gates that the job must pass to start, such as `#stripe` or `#mail=17`. Null if there are none."""
    ordered_by: Mapped[str | None] = mapped_column(sa.Text(collation="C"))
    """The job's ordered gate, one of its `gates`. Jobs with this gate start in the order of their positions."""
    unique_key: Mapped[str | None] = mapped_column(sa.Text)
    """The unique key, which at most one live job (blocked, scheduled, queued or running) holds."""
    unique_period: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True))
    """The start of the period in which no other job may take the key, even after this job has ended."""
    headers: Mapped[dict[str, str] | None] = mapped_column(JSONB(none_as_null=True))
    """Headers that middleware and tracing pass from the enqueue to the runs, as a JSON object. Null if there are
    none."""
    on_failure: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    """The job that is enqueued once this one has failed for good: its `task`, `queue`, `priority`, `max_attempts`,
    `max_lost` and `gates` if it has any, and the `argument` that receives this job's id."""
    progress: Mapped[float | None] = mapped_column(sa.Double)
    """The progress of the current or last attempt, from 0 to 1."""
    progress_message: Mapped[str | None] = mapped_column(sa.Text)
    """The text reported with `progress`."""
    cancel_requested_at: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True))
    """When a running job was asked to stop."""
    kill_requested: Mapped[bool] = mapped_column(sa.Boolean, nullable=False, server_default=sa.text("false"))
    """True if the process of a running job is to be killed unless the job stops."""
    schedule_id: Mapped[int | None] = mapped_column(sa.BigInteger)
    """The schedule that enqueued the job."""
    scheduled_for: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True))
    """The tick for which that schedule enqueued the job."""
    created_at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True), nullable=False, server_default=now())
    """When the row was inserted. For a job that was replaced after an attempt: when it was replaced."""
    started_at: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True))
    """When the current or last attempt was claimed."""
    finished_at: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True))
    """When the job ended as succeeded, failed or cancelled."""
    position: Mapped[int] = mapped_column(sa.BigInteger, sa.Identity(), nullable=False)
    """The job's position in its queue.

    Each time the job becomes queued, it takes a new position from a sequence, so positions only grow.
    """
    waits_for: Mapped[int | None] = mapped_column(sa.BigInteger)
    """The job that a blocked job currently waits for. It is one of the jobs that the blocked job was enqueued after.

    In a cancelled job: the job whose end cancelled this one.
    """
    waits_at: Mapped[int | None] = mapped_column(sa.Integer)
    """The place in `after=` of the `waits_for` job or of its batch, counted from 1."""
    if_failed: Mapped[IfFailed | None] = mapped_column(WordType(IfFailed))
    """What happens to this job if a job before it fails, is cancelled or is deleted. Null if the job was not enqueued
    after others."""
    batch_id: Mapped[int | None] = mapped_column(sa.BigInteger)
    """The job's batch."""
    times_replaced: Mapped[int | None] = mapped_column(sa.Integer)
    """The number of enqueues with the job's unique key that replaced it.

    Null means 0, since a null takes no space.
    """
    times_returned: Mapped[int | None] = mapped_column(sa.Integer)
    """Not used any more. Programs that run 0.2 write it."""
    max_lost: Mapped[int | None] = mapped_column(sa.SmallInteger)
    """The number of lost runs in a row after which the job ends as `failed`. A lost run then gives its attempt back.
    Null if each lost run uses an attempt."""
    timeout: Mapped[float | None] = mapped_column(sa.Double)
    """The time limit of each attempt, in seconds. Null if the limit of the task or of the worker applies."""
    retention: Mapped[float | None] = mapped_column(sa.Double)
    """How many seconds after its end the job is deleted. Null if the retention of the task or of the worker applies."""
    expires_at: Mapped[datetime | None] = mapped_column(RunAtType)
    """If the job has not begun by then, the next claim ends it as `cancelled`. Null if it does not expire."""

    is_new: bool = False
    """True if the enqueue that returned this object inserted the job, False if a live job had its unique key.

    This is no column: an object that a query loads says False, and one that the session has already does not change.
    """

    if TYPE_CHECKING:
        runs: Mapped[list[RunMixin]]
        """The job's attempts, oldest first; read-only."""

    @property
    def result(self) -> Any:
        """The result of the job's last run, decoded from JSON; `None` while there is no result."""
        return self.runs[-1].result if self.runs else None


class RunMixin(Row):
    """One attempt at a job, written when the attempt ends."""

    id: Mapped[int] = mapped_column(sa.BigInteger, sa.Identity(), primary_key=True)
    """The lease of the attempt, taken from the sequence when the job was claimed."""
    job_id: Mapped[int] = mapped_column(sa.BigInteger, nullable=False)
    """The job, which may have been deleted since."""
    attempt: Mapped[int] = mapped_column(sa.Integer, nullable=False)
    """The number of the attempt, from 1. Runs have the same number if a snooze or a loss gave the attempt back."""
    process_id: Mapped[uuid.UUID | None] = mapped_column(sa.Uuid)
    """The process that ran the attempt."""
    started_at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True), nullable=False, server_default=now())
    """When the attempt began to run."""
    finished_at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True), nullable=False, server_default=now())
    """When the attempt ended."""
    outcome: Mapped[RunOutcome] = mapped_column(WordType(RunOutcome), nullable=False)
    """The outcome of the attempt."""
    result: Mapped[Any] = mapped_column(JSONB(none_as_null=True), nullable=True)
    """The task's return value, as JSON. Null if the task returned nothing or did not succeed."""
    error_type: Mapped[str | None] = mapped_column(sa.Text)
    """The name of the exception, such as `ValueError`."""
    error: Mapped[str | None] = mapped_column(sa.Text)
    """The exception's message."""
    traceback: Mapped[str | None] = mapped_column(sa.Text)
    """The exception's traceback, without the values of sensitive arguments."""
    untold_at: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True))
    """When another process is to notify the handlers of a failed or lost attempt. The attempt's own process may notify
    them earlier. Null once the handlers have been notified."""

    if TYPE_CHECKING:
        job: Mapped[JobMixin | None]
        """The job that this attempt belongs to; read-only."""


class ScheduleMixin(Row):
    """A cron rule that enqueues jobs."""

    id: Mapped[int] = mapped_column(sa.BigInteger, sa.Identity(), primary_key=True)
    """Assigned by the database when the schedule is inserted."""
    name: Mapped[str] = mapped_column(sa.Text, nullable=False)
    """The schedule's name, unique among schedules. Code and operators refer to it."""
    task: Mapped[str] = mapped_column(sa.Text, nullable=False)
    """The name of the task whose jobs the schedule enqueues."""
    cron: Mapped[str] = mapped_column(sa.Text, nullable=False)
    """The rule: five fields, six with seconds first, or `@every SECONDS`."""
    timezone: Mapped[str] = mapped_column(sa.Text, nullable=False, server_default="UTC")
    """The IANA time zone in which the rule is interpreted."""
    args: Mapped[dict[str, Any]] = mapped_column(JSONB, nullable=False, server_default=sa.text("'{}'"))
    """The arguments of each job, as a JSON object."""
    queue: Mapped[str] = mapped_column(sa.Text, nullable=False, server_default="default")
    """The queue for the schedule's jobs."""
    priority: Mapped[int] = mapped_column(sa.SmallInteger, nullable=False, server_default=sa.text("0"))
    """The priority of the schedule's jobs, from -10 to 10; lower values run first."""
    catch_up: Mapped[CatchUp] = mapped_column(WordType(CatchUp), nullable=False, server_default="latest")
    """The handling of ticks that were missed because no clock was running."""
    overlap: Mapped[Overlap] = mapped_column(WordType(Overlap), nullable=False, server_default="allow")
    """The handling of a tick while an earlier tick's job has not ended."""
    jitter: Mapped[float] = mapped_column(sa.Double, nullable=False, server_default=sa.text("0"))
    """The longest random delay of a job after its tick, in seconds."""
    enabled: Mapped[bool] = mapped_column(sa.Boolean, nullable=False, server_default=sa.text("true"))
    """True if the schedule fires."""
    disabled_reason: Mapped[str | None] = mapped_column(sa.Text)
    """The reason why the schedule is disabled, for the dashboard and the command line."""
    next_run_at: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True))
    """The next tick. The clock computes it, and computes it again after a change to `cron` or `timezone`."""
    last_run_at: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True))
    """The last tick for which a job was enqueued."""
    declared: Mapped[bool] = mapped_column(sa.Boolean, nullable=False, server_default=sa.text("false"))
    """True if code declared the schedule, False if an operator created it."""
    declared_values: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    """The last values that code declared. A column that differs from its declared value was set by an operator."""
    declared_at: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True))
    """When a process last declared the schedule."""
    retired_at: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True))
    """When the schedule was disabled because no code declared it any more."""
    planned_rule: Mapped[str | None] = mapped_column(sa.Text)
    """The rule from which `next_run_at` was computed."""


class TickMixin(Row):
    """The outcome of one tick of a schedule, or of several consecutive missed ticks. The clock only adds rows."""

    id: Mapped[int] = mapped_column(sa.BigInteger, sa.Identity(), primary_key=True)
    """Assigned by the database when the row is inserted."""
    schedule_id: Mapped[int] = mapped_column(sa.BigInteger, nullable=False)
    """The schedule, which may have been removed since."""
    scheduled_for: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True), nullable=False, server_default=now())
    """The time of the tick, or of the first tick of several."""
    until: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True), nullable=False, server_default=now())
    """The time of the last of several ticks; for a single tick, the same as `scheduled_for`."""
    count: Mapped[int | None] = mapped_column(sa.Integer, server_default=sa.text("1"))
    """The number of ticks. Null if there are too many to count."""
    outcome: Mapped[TickOutcome] = mapped_column(WordType(TickOutcome), nullable=False)
    """`enqueued`; `skipped`, because an earlier job had not ended or had the unique key; or `missed`, because no clock
    fired the tick in time."""
    job_id: Mapped[int | None] = mapped_column(sa.BigInteger)
    """The job that was enqueued, or that caused the tick to be skipped. The job may have been deleted since."""
    at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True), nullable=False, server_default=now())
    """When a clock handled the tick."""


class ProcessMixin(Row):
    """A worker or clock. The process counts as alive while `heartbeat_at` is less than `lease` seconds ago."""

    id: Mapped[uuid.UUID] = mapped_column(
        sa.Uuid, primary_key=True, server_default=sa.text("gen_random_uuid()"), default=uuid.uuid4
    )
    """Generated by the process when it starts."""
    kind: Mapped[str] = mapped_column(sa.Text, nullable=False, server_default="worker")
    """`worker` or `clock`."""
    host: Mapped[str] = mapped_column(sa.Text, nullable=False, server_default="")
    """The name of the process's host."""
    pid: Mapped[int] = mapped_column(sa.Integer, nullable=False, server_default=sa.text("0"))
    """The process id on that host."""
    queues: Mapped[dict[str, int]] = mapped_column(JSONB, nullable=False, server_default=sa.text("'{}'"))
    """The name and concurrency of each queue that the process serves."""
    tasks: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    """The tasks that a worker knows, by name and alias, each with the parameters that the worker's code accepts.

    Null if not reported.
    """
    set_aside: Mapped[dict[str, str]] = mapped_column(JSONB, nullable=False, server_default=sa.text("'{}'"))
    """The obstacles for the process, by name, each with its reason.

    Obstacles are rows that the server refuses to change, such as `job 17`, and a blocked `event loop`.
    """
    connections: Mapped[int] = mapped_column(sa.Integer, nullable=False, server_default=sa.text("0"))
    """The maximum number of simultaneous server connections that the process uses, including its jobs' connections."""
    version: Mapped[str] = mapped_column(sa.Text, nullable=False, server_default="")
    """The version of this library that the process runs."""
    clock_offset: Mapped[float | None] = mapped_column(sa.Double)
    """Seconds by which the host's clock is ahead of the server's. Negative if the host's clock is behind."""
    last_finished_at: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True))
    """When a job last ended in this process, stored with a delay of a few seconds. Null before the first."""
    stalled_since: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True))
    """The time at which the process last ran Python code, as observed by its parent.

    Null while the process makes progress.
    """
    lease: Mapped[float] = mapped_column(sa.Double, nullable=False, server_default=sa.text("30"))
    """Seconds without a heartbeat after which the process is considered dead."""
    started_at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True), nullable=False, server_default=now())
    """When the process registered."""
    heartbeat_at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True), nullable=False, server_default=now())
    """The time of the process's last heartbeat."""


class QueueMixin(Row):
    """An operator's settings for a queue. A queue without a row is neither paused nor limited."""

    name: Mapped[str] = mapped_column(sa.Text, primary_key=True)
    """The queue's name."""
    paused_at: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True))
    """When the queue was paused. Null if it is not paused."""
    paused_until: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True))
    """When the pause ends by itself. Null if the queue must be resumed explicitly."""
    pause_reason: Mapped[str | None] = mapped_column(sa.Text)
    """The reason for the pause."""


class PausedTaskMixin(Row):
    """A task whose jobs are not claimed. A task with aliases has a row for each of its names."""

    name: Mapped[str] = mapped_column(sa.Text, primary_key=True)
    """The task's name or one of its aliases."""
    paused_at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True), nullable=False, server_default=now())
    """When the task was paused."""
    paused_until: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True))
    """When the pause ends by itself. Null if the task must be resumed explicitly."""
    pause_reason: Mapped[str | None] = mapped_column(sa.Text)
    """The reason for the pause."""


class LimitMixin(Row):
    """A limit on the jobs that run behind a gate simultaneously, or start in a period.

    Code declares it; operators can override it.
    """

    gate: Mapped[str] = mapped_column(sa.Text(collation="C"), primary_key=True)
    """The gate, such as `#stripe`. `#mail=` limits each key separately, `#mail=17` one key, and `@mail` a queue."""
    running: Mapped[int | None] = mapped_column(sa.Integer)
    """The number of jobs that may run simultaneously. Null for no limit."""
    rate: Mapped[int | None] = mapped_column(sa.Integer)
    """The number of jobs that may start in any `per` seconds. Null for no limit."""
    per: Mapped[float | None] = mapped_column(sa.Double)
    """The period of the rate, in seconds."""
    hold: Mapped[bool] = mapped_column(sa.Boolean, nullable=False, server_default=sa.text("false"))
    """True if the next jobs of an ordered key have to wait once one of its jobs has failed."""
    tasks: Mapped[list[str]] = mapped_column(ARRAY(sa.Text), nullable=False, server_default=sa.text("'{}'"))
    """The names of the tasks whose jobs are limited."""
    declared: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    """The values that code declares. Null if no code declares the limit."""
    set_at: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True))
    """When an operator overrode the declared values. Null if the declared values apply."""
    changed_at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True), nullable=False, server_default=now())
    """When the limit's numbers or tasks last changed."""


class StartMixin(Row):
    """The jobs that started behind a rate-limited gate at one time.

    Rows are never updated, only added, and deleted when they are old. Starts taken with `Jobs.spend` count as jobs.
    """

    gate: Mapped[str] = mapped_column(sa.Text(collation="C"), primary_key=True)
    """The gate, such as `%stripe`."""
    started_at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True), primary_key=True)
    """When these jobs started."""
    total: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True)
    """The number of jobs that have started behind the gate so far, including those of this row."""
    count: Mapped[int] = mapped_column(sa.Integer, nullable=False)
    """The number of jobs that started at this time."""


class AuditMixin(Row):
    """A change that a person made on the dashboard or the command line: who changed what, and when.

    Rows are never changed.
    """

    id: Mapped[int] = mapped_column(sa.BigInteger, sa.Identity(), primary_key=True)
    """Assigned by the database when the line is added."""
    at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True), nullable=False, server_default=now())
    """When the change was made."""
    actor: Mapped[str] = mapped_column(sa.Text, nullable=False, server_default="")
    """The person who made the change, as the application identifies the visitor."""
    action: Mapped[str] = mapped_column(sa.Text, nullable=False, server_default="")
    """The action, such as `retry`."""
    subject: Mapped[str] = mapped_column(sa.Text, nullable=False, server_default="")
    """The object of the action, such as `job 17`."""
    details: Mapped[dict[str, Any]] = mapped_column(JSONB, nullable=False, server_default=sa.text("'{}'"))
    """The details of the change, as a JSON object."""
