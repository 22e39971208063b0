"""Maps the models on an application's registry and metadata, with table names made of schema and prefix."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from hashlib import sha256
from inspect import get_annotations
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast
from weakref import WeakValueDictionary

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import foreign, registry, relationship
from sqlalchemy.sql.visitors import iterate

from sqla_jobs.errors import ConfigurationError
from sqla_jobs.models import constraints
from sqla_jobs.models.columns import (
    AuditMixin,
    JobMixin,
    LimitMixin,
    PausedTaskMixin,
    ProcessMixin,
    QueueMixin,
    RunMixin,
    ScheduleMixin,
    StartMixin,
    TickMixin,
)
from sqla_jobs.models.dialect import check_dialect
from sqla_jobs.models.version import LATEST, comment_of
from sqla_jobs.models.workflow_columns import BatchMixin, EdgeMixin, SignalMixin, StepMixin

J = TypeVar("J", bound=JobMixin)
MARK = "sqla_jobs"
"""The key in a jobs table's `info` under which the prefix is stored."""
_POSITIONS = "jobs_position_seq"


_made: WeakValueDictionary[str, type[Any]] = WeakValueDictionary()
"""The classes created here, by name. If several share a name, as in tests, only the last one is kept."""

if not TYPE_CHECKING:

    def __getattr__(name: str) -> type[Any]:
        """Return a class that a `Jobs` in this process has created here. `pickle` needs this function to find it."""
        if name in _made:
            return _made[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def library_tables() -> set[str]:
    """Return the names of the tables of each `Jobs` in this process."""
    mapped = [*_made.values()]
    jobs = {one.__tablename__.removesuffix("runs") + "jobs" for one in mapped if issubclass(one, RunMixin)}
    return jobs | {one.__tablename__ for one in mapped}


@dataclass(frozen=True)
class Models(Generic[J]):
    """The mapped classes of one `Jobs`, and the sequences of their identity columns."""

    Job: type[J]
    Run: type[RunMixin]
    Schedule: type[ScheduleMixin]
    Tick: type[TickMixin]
    Process: type[ProcessMixin]
    Queue: type[QueueMixin]
    PausedTask: type[PausedTaskMixin]
    Limit: type[LimitMixin]
    Start: type[StartMixin]
    Audit: type[AuditMixin]
    Batch: type[BatchMixin]
    Edge: type[EdgeMixin]
    Step: type[StepMixin]
    Signal: type[SignalMixin]
    positions: sa.Sequence
    run_ids: sa.Sequence

    @property
    def prefix(self) -> str:
        """The first part of each table's name."""
        return self.positions.name.removesuffix(_POSITIONS)

    @property
    def tables(self) -> dict[str, sa.Table]:
        """The tables, by name without the prefix: jobs, runs and so on."""
        plain = (self.Job, self.Run, self.Schedule, self.Tick, self.Process, self.Queue, self.PausedTask)
        mapped = (*plain, self.Limit, self.Start, self.Audit, self.Batch, self.Edge, self.Step, self.Signal)
        return {model.__tablename__.removeprefix(self.prefix): cast("sa.Table", model.__table__) for model in mapped}

    @cached_property
    def channel(self) -> str:
        """The channel on which processes notify one another of new jobs. PostgreSQL allows names of 63 bytes."""
        name = f"{self.positions.schema or ''}.{self.positions.name}"
        return name if len(name) < 64 else f"sqla_jobs_{sha256(name.encode()).hexdigest()[:32]}"


def map_models(base: type[Any] | registry, schema: str | None, prefix: str, job_class: type[J]) -> Models[J]:
    """Map `job_class` and its companion classes alongside the application's own models.

    Raises `ConfigurationError` for an unusable base, schema, prefix or job class, before anything is mapped. Only
    errors in the job class's columns are found later, when the class itself is mapped.
    """
    mapper_registry, metadata = _registry_of(base)
    check_prefix(prefix)
    if schema == "":
        raise ConfigurationError("schema='': name a schema, or leave it out for the one of the metadata")
    schema = schema if schema is not None else metadata.schema
    if schema and (not schema.isprintable() or re.search(r"['%]|(?<!\w):\w", schema)):
        raise ConfigurationError(
            "schema must be printable, and must not contain %, ' or a word that begins with :, which have a meaning of "
            f"their own in statements, got {schema!r:.60}: rename it"
        )
    nouns = (
        *("jobs", "runs", "schedules", "ticks", "processes", "queues", "paused_tasks", "limits", "starts", "audit"),
        *("batches", "edges", "steps", "signals"),
    )
    names = [f"{prefix}{noun}" for noun in nouns]
    taken = [name for name in names if (f"{schema}.{name}" if schema else name) in metadata.tables]
    if taken:
        raise ConfigurationError(
            f"the metadata already has a table {taken[0]!r}: a second Jobs on one base needs its own prefix= or schema="
        )
    _check_job_class(job_class)
    jobs, runs, schedules, ticks, processes, queues, paused_tasks, limits, starts, audit, *of_workflows = names
    batches, edges, steps, signals = of_workflows
    # the identity columns' sequences, by the names that PostgreSQL gives them
    positions = sa.Sequence(f"{prefix}{_POSITIONS}", schema=schema)
    run_ids = sa.Sequence(f"{runs}_id_seq", schema=schema)
    camel = "".join(part.title() for part in re.split(r"[^a-zA-Z0-9]+", f"{schema or ''}_{prefix}")) or "Sqla"

    def mapped(mixin: type[Any], table: str, *args: Any, **options: Any) -> type[Any]:
        """Map `mixin` itself if it is an application's own class, otherwise a class made from it."""
        attributes: dict[str, Any] = {
            "__tablename__": table,
            "__table_args__": (*args, {"schema": schema, **options}),
            "metadata": metadata,
        }
        if mixin.__module__ in (JobMixin.__module__, BatchMixin.__module__):
            noun = mixin.__name__.removesuffix("Mixin")
            mixin = type(f"{camel}{noun}", (mixin,), attributes | {"__module__": __name__})
            _made[mixin.__name__] = mixin
        else:
            for name, value in attributes.items():
                setattr(mixin, name, value)
        mapper_registry.map_declaratively(mixin)
        return mixin

    try:
        Job = mapped(job_class, jobs, *constraints.of_jobs(jobs), comment=comment_of(LATEST), info={MARK: prefix})
    except SQLAlchemyError as error:
        raise ConfigurationError(f"job_class={job_class.__name__} cannot be mapped: {error}") from error
    _refuse_unmapped_columns(Job)
    _refuse_columns_to_fill(Job)
    Run = mapped(RunMixin, runs, *constraints.of_runs(runs))
    Schedule = mapped(ScheduleMixin, schedules, *constraints.of_schedules(schedules))
    Tick = mapped(TickMixin, ticks, *constraints.of_ticks(ticks))
    Process = mapped(ProcessMixin, processes, *constraints.of_processes(processes))
    Queue = mapped(QueueMixin, queues, *constraints.of_queues(queues))
    PausedTask = mapped(PausedTaskMixin, paused_tasks, *constraints.of_paused_tasks(paused_tasks))
    Limit = mapped(LimitMixin, limits, *constraints.of_limits(limits))
    Start = mapped(StartMixin, starts, *constraints.of_starts(starts))
    Audit = mapped(AuditMixin, audit, *constraints.of_audit(audit))
    Batch = mapped(BatchMixin, batches, *constraints.of_batches(batches))
    job_id = Job.__table__.c.id
    Edge = mapped(EdgeMixin, edges, *constraints.of_edges(edges, job_id))
    Step = mapped(StepMixin, steps, *constraints.of_steps(steps, job_id))
    Signal = mapped(SignalMixin, signals, *constraints.of_signals(signals, job_id))

    _mapper(Job).add_property(
        "runs",
        relationship(
            Run,
            primaryjoin=lambda: Job.id == foreign(Run.job_id),
            order_by=lambda: Run.id,
            viewonly=True,
        ),
    )
    _mapper(Run).add_property(
        "job",
        relationship(Job, primaryjoin=lambda: foreign(Run.job_id) == Job.id, viewonly=True, uselist=False),
    )
    models = Models(
        *(Job, Run, Schedule, Tick, Process, Queue, PausedTask, Limit, Start, Audit, Batch, Edge, Step, Signal),
        positions=positions,
        run_ids=run_ids,
    )
    event.listen(metadata, "before_create", partial(_check_dialect, set(models.tables.values())))
    return models


def _check_dialect(
    own: set[sa.Table],
    metadata: sa.MetaData,
    connection: sa.Connection,
    tables: Iterable[sa.Table] | None = None,
    **_: object,
) -> None:
    if tables is None or not own.isdisjoint(tables):
        check_dialect(connection.dialect)


def check_prefix(prefix: str) -> None:
    """Raise `ConfigurationError` for a prefix with which no table name can begin."""
    if not re.fullmatch(r"([a-z_][a-z0-9_]{0,30})?", prefix):
        raise ConfigurationError(f"prefix must be at most 31 lower-case letters, digits and _, got {prefix!r}")


def _mapper(entity: type[Any]) -> Any:
    return sa.inspect(entity)


def _registry_of(base: type[Any] | registry) -> tuple[registry, sa.MetaData]:
    if isinstance(base, registry):
        return base, base.metadata
    found = getattr(base, "registry", getattr(base, "_sa_registry", None))  # SQLModel's registry has no public name
    if not isinstance(found, registry):
        raise ConfigurationError(
            f"Jobs({base!r}): give your declarative base class, Flask-SQLAlchemy's db.Model, SQLModel, "
            "or a sqlalchemy.orm.registry"
        )
    metadata = getattr(base, "metadata", None)
    return found, metadata if isinstance(metadata, sa.MetaData) else found.metadata


def _check_job_class(job_class: type[Any]) -> None:
    if not (isinstance(job_class, type) and issubclass(job_class, JobMixin)):
        raise ConfigurationError(f"job_class must be a subclass of sqla_jobs.JobMixin, got {job_class!r}")
    if sa.inspect(job_class, raiseerr=False) is not None or isinstance(getattr(job_class, "registry", None), registry):
        raise ConfigurationError(
            f"job_class={job_class.__name__} is mapped already: leave it unmapped "
            "(class MyJob(JobMixin), without your Base), Jobs(…) maps it; each Jobs takes a class of its own"
        )
    own = [kind for kind in job_class.__mro__ if kind not in JobMixin.__mro__]
    named = {name for kind in own for name in (*vars(kind), *get_annotations(kind))}
    if taken := sorted(named & {*JobMixin.__annotations__, "runs"}):
        raise ConfigurationError(
            f"{job_class.__name__}.{taken[0]} has the name of a column or relationship of JobMixin: name it otherwise"
        )


def columns_of(entity: type[Any]) -> dict[str, sa.Column[Any]]:
    """Return the columns of the entity's table, by attribute name.

    Computed columns, such as a `column_property`, are left out.
    """
    return {name: column for name, column in _mapper(entity).columns.items() if isinstance(column, sa.Column)}


def _refuse_unmapped_columns(job_class: type[Any]) -> None:
    """Refuse computed columns of an unmapped class: every SELECT would fail, with an error that hides the cause."""
    for name, computed in _mapper(job_class).columns.items():
        if any(isinstance(part, sa.Column) and getattr(part, "table", None) is None for part in iterate(computed)):
            raise ConfigurationError(
                f"{job_class.__name__}.{name} is computed of columns that belong to no table yet: write it as a "
                f"function of the class, @declared_attr def {name}(cls): return column_property(… cls.priority …)"
            )


def _refuse_columns_to_fill(job_class: type[Any]) -> None:
    """Refuse columns that every INSERT would have to fill: the command line, clocks and plain SQL cannot fill them."""
    for name, column in columns_of(job_class).items():
        given = name in ("task", "args") or column.nullable
        if not given and column.server_default is None:
            raise ConfigurationError(
                f"{job_class.__name__}.{name} is NOT NULL without a server default: give it server_default=, "
                "or make it nullable (Mapped[… | None]), since jobs are inserted from elsewhere too"
            )
