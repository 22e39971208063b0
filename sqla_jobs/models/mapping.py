"""Maps the six models on an application's registry and metadata, named by schema and prefix."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any, Generic, TypeVar, cast

from sqlalchemy import (
    CheckConstraint,
    Index,
    MetaData,
    PrimaryKeyConstraint,
    Sequence,
    Table,
    UniqueConstraint,
    text,
)
from sqlalchemy import inspect as sa_inspect
from sqlalchemy.orm import foreign, registry, relationship
from sqlalchemy.sql.elements import conv

from sqla_jobs.errors import ConfigurationError
from sqla_jobs.models.columns import (
    HAS_LIVE_KEY,
    MOST_ATTEMPTS,
    AuditMixin,
    CatchUp,
    JobMixin,
    JobState,
    Overlap,
    ProcessMixin,
    QueueMixin,
    RunMixin,
    ScheduleMixin,
)
from sqla_jobs.models.version import LATEST, comment_of
from sqla_jobs.rules.checks import MAX_DEPTH, MAX_ID
from sqla_jobs.rules.outcomes import RunOutcome

J = TypeVar("J", bound=JobMixin)
MARK = "sqla_jobs"
"""Where the `info` of a jobs' table says its prefix."""
_POSITIONS = "jobs_position_seq"


@dataclass(frozen=True)
class Models(Generic[J]):
    """The mapped classes of one `Jobs`, and the sequences behind them."""

    Job: type[J]
    Run: type[RunMixin]
    Schedule: type[ScheduleMixin]
    Process: type[ProcessMixin]
    Queue: type[QueueMixin]
    Audit: type[AuditMixin]
    positions: Sequence
    run_ids: Sequence

    @property
    def prefix(self) -> str:
        """The first part of each table's name."""
        return self.positions.name.removesuffix(_POSITIONS)

    @property
    def tables(self) -> dict[str, Table]:
        """By what their names have after the prefix: jobs, runs and so on."""
        mapped = (self.Job, self.Run, self.Schedule, self.Process, self.Queue, self.Audit)
        return {model.__tablename__.removeprefix(self.prefix): cast("Table", model.__table__) for model in mapped}

    @cached_property
    def channel(self) -> str:
        """The name under which processes tell one another of new jobs; PostgreSQL takes 63 bytes."""
        name = f"{self.positions.schema or ''}.{self.positions.name}"
        return name if len(name) < 64 else f"sqla_jobs_{sha256(name.encode()).hexdigest()[:32]}"


def map_models(base: type[Any] | registry, schema: str | None, prefix: str, job_class: type[J]) -> Models[J]:
    """Map `job_class` and its five companions beside the application's own models.

    Raises `ConfigurationError` where base, schema, prefix or job class cannot be used, before anything is
    mapped; only what the columns of a job class turn out to be shows when it is mapped itself.
    """
    mapper_registry, metadata = _registry_of(base)
    check_prefix(prefix)
    if schema == "":
        raise ConfigurationError("schema='': name a schema, or leave it out for the one of the metadata")
    schema = schema if schema is not None else metadata.schema
    if schema and "%" in schema:
        raise ConfigurationError(f"schema must not contain %, which marks parameters in statements, got {schema!r}")
    names = [f"{prefix}{noun}" for noun in ("jobs", "runs", "schedules", "processes", "queues", "audit")]
    taken = [name for name in names if (f"{schema}.{name}" if schema else name) in metadata.tables]
    if taken:
        raise ConfigurationError(
            f"the metadata already has a table {taken[0]!r}: a second Jobs on one base needs its own prefix= or schema="
        )
    _check_job_class(job_class)
    jobs, runs, schedules, processes, queues, audit = names
    # those of the identity columns, which PostgreSQL names so
    positions = Sequence(f"{prefix}{_POSITIONS}", schema=schema)
    run_ids = Sequence(f"{runs}_id_seq", schema=schema)
    camel = "".join(part.title() for part in re.split(r"[^a-zA-Z0-9]+", f"{schema or ''}_{prefix}")) or "Sqla"

    def mapped(mixin: type[Any], table: str, *args: Any, **options: Any) -> type[Any]:
        """`mixin` itself where it is an application's own class, else a class made from it."""
        attributes: dict[str, Any] = {
            "__tablename__": table,
            "__table_args__": (*args, {"schema": schema, **options}),
            "metadata": metadata,
        }
        if mixin.__module__ == JobMixin.__module__:
            noun = mixin.__name__.removesuffix("Mixin")
            mixin = type(f"{camel}{noun}", (mixin,), attributes | {"__module__": __name__})
        else:
            for name, value in attributes.items():
                setattr(mixin, name, value)
        mapper_registry.map_declaratively(mixin)
        return mixin

    Job = mapped(job_class, jobs, *_job_rules(jobs), comment=comment_of(LATEST), info={MARK: prefix})
    _refuse_columns_to_fill(Job)
    Run = mapped(
        RunMixin,
        runs,
        PrimaryKeyConstraint("id", name=conv(f"{runs}_pkey")),
        _one_of(runs, "outcome", RunOutcome),
        _check(runs, "id", _ID),
        _check(runs, "attempt", "attempt >= 0"),
        _check(runs, "times", _in_range("started_at", "finished_at")),
        Index(f"{runs}_job_id", "job_id"),
        # for the dashboard's charts: both cost the finish of a job that goes well next to nothing
        Index(f"{runs}_finished_at", "finished_at", postgresql_using="brin"),
        Index(
            f"{runs}_failed",
            "finished_at",
            postgresql_where=text("outcome IN ('failed', 'retried', 'lost')"),
        ),
    )
    Schedule = mapped(
        ScheduleMixin,
        schedules,
        PrimaryKeyConstraint("id", name=conv(f"{schedules}_pkey")),
        UniqueConstraint("name", name=conv(f"{schedules}_name_key")),
        _one_of(schedules, "catch_up", CatchUp),
        _one_of(schedules, "overlap", Overlap),
        _check(schedules, "id", _ID),
        _check(schedules, "priority", "priority BETWEEN -10 AND 10"),
        _check(schedules, "args", _object("args")),
        _check(schedules, "declared_values", _object("declared_values")),
        _check(schedules, "jitter", "jitter BETWEEN 0 AND 86400"),
        _check(schedules, "times", _in_range("next_run_at", "last_run_at", "declared_at", "retired_at")),
    )
    Process = mapped(
        ProcessMixin,
        processes,
        PrimaryKeyConstraint("id", name=conv(f"{processes}_pkey")),
        _check(processes, "queues", _object("queues")),
        _check(processes, "set_aside", _object("set_aside")),
        _check(processes, "lease", "lease > 0 AND lease <= 86400"),
        _check(processes, "times", _in_range("started_at", "heartbeat_at")),
    )
    Queue = mapped(
        QueueMixin,
        queues,
        PrimaryKeyConstraint("name", name=conv(f"{queues}_pkey")),
        _check(queues, "times", _in_range("paused_at")),
    )
    Audit = mapped(
        AuditMixin,
        audit,
        PrimaryKeyConstraint("id", name=conv(f"{audit}_pkey")),
        _check(audit, "id", _ID),
        _check(audit, "details", _object("details")),
        _check(audit, "times", _in_range("at")),
    )

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
    return Models(Job, Run, Schedule, Process, Queue, Audit, positions, run_ids)


def check_prefix(prefix: str) -> None:
    """Raise `ConfigurationError` for what no table's name can begin with."""
    if not re.fullmatch(r"([a-z_][a-z0-9_]{0,30})?", prefix):
        raise ConfigurationError(f"prefix must be at most 31 lower-case letters, digits and _, got {prefix!r}")


def _mapper(entity: type[Any]) -> Any:
    return sa_inspect(entity)


def _registry_of(base: type[Any] | registry) -> tuple[registry, MetaData]:
    if isinstance(base, registry):
        return base, base.metadata
    found = getattr(base, "registry", None)
    if not isinstance(found, registry):
        raise ConfigurationError(
            f"Jobs({base!r}): give your declarative base class, Flask-SQLAlchemy's db.Model, "
            "or a sqlalchemy.orm.registry, as in Jobs(registry(metadata=SQLModel.metadata))"
        )
    metadata = getattr(base, "metadata", None)
    return found, metadata if isinstance(metadata, MetaData) else found.metadata


def _check_job_class(job_class: type[Any]) -> None:
    if not (isinstance(job_class, type) and issubclass(job_class, JobMixin)):
        raise ConfigurationError(f"job_class must be a subclass of sqla_jobs.JobMixin, got {job_class!r}")
    if sa_inspect(job_class, raiseerr=False) is not None or isinstance(getattr(job_class, "registry", None), registry):
        raise ConfigurationError(
            f"job_class={job_class.__name__} is mapped already: leave it unmapped "
            "(class MyJob(JobMixin), without your Base), Jobs(…) maps it; each Jobs takes a class of its own"
        )


def _refuse_columns_to_fill(job_class: type[Any]) -> None:
    """Whoever enqueues without knowing the class (the command line, a clock, a plain INSERT) must be able to."""
    for name, column in _mapper(job_class).columns.items():
        given = name in ("task", "args") or column.nullable
        if not given and column.server_default is None:
            raise ConfigurationError(
                f"{job_class.__name__}.{name} is NOT NULL without a server default: give it server_default=, "
                "or make it nullable (Mapped[… | None]), since jobs are inserted from elsewhere too"
            )


def _check(table: str, name: str, rule: str) -> CheckConstraint:
    return CheckConstraint(rule, name=conv(f"{table}_{name}_check"))


def _one_of(table: str, column: str, words: Any) -> CheckConstraint:
    listed = ", ".join(f"'{word}'" for word in words)
    return _check(table, column, f"{column} IN ({listed})")


_ID = f"id > 0 AND id <= {MAX_ID}"


def _object(column: str) -> str:
    """An object with no more levels, and no larger numbers, than every JSON parser can read."""
    too_large = f"jsonb_path_exists({column}, '$.** ? (@ > 1e300 || @ < -1e300)')"
    return f"jsonb_typeof({column}) = 'object' AND NOT jsonb_path_exists({column}, '{_TOO_DEEP}') AND NOT {too_large}"


_TOO_DEEP = f"$.**{{{MAX_DEPTH}}}"


def _in_range(*columns: str) -> str:
    """Moments that every driver can read in every time zone. (NULL passes; 'infinity' does not.)"""
    return " AND ".join(f"{column} >= '1000-01-01 UTC' AND {column} < '9000-01-01 UTC'" for column in columns)


_IS_PARKED = "run_at = 'infinity' AND state IN ('scheduled', 'cancelled')"


def _job_rules(table: str) -> tuple[Any, ...]:
    """The invariants of a job, and one narrow index for each state that something looks for."""
    moments = _in_range("created_at", "scheduled_for", "cancel_requested_at", "started_at", "finished_at")
    return (
        PrimaryKeyConstraint("id", name=conv(f"{table}_pkey")),
        _one_of(table, "state", JobState),
        _check(table, "id", _ID),
        _check(table, "priority", "priority BETWEEN -10 AND 10"),
        _check(table, "position", "position > 0"),
        # not of those that were checked before: large arguments would be read for it with each change of the row
        _check(table, "args", "state NOT IN ('scheduled', 'queued') OR jsonb_typeof(args) = 'object'"),
        _check(
            table, "attempts", f"attempt BETWEEN 0 AND {MOST_ATTEMPTS} AND max_attempts BETWEEN 1 AND {MOST_ATTEMPTS}"
        ),
        _check(table, "lease", "state <> 'running' OR (current_run_id IS NOT NULL AND process_id IS NOT NULL)"),
        _check(table, "progress", "progress BETWEEN 0 AND 1"),
        _check(table, "times", moments),
        _check(table, "run_at", f"{_in_range('run_at')} OR {_IS_PARKED}"),
        Index(
            f"{table}_queued",
            "queue",
            "priority",
            "position",
            postgresql_where=text("state = 'queued'"),
        ),
        Index(f"{table}_scheduled", "run_at", postgresql_where=text("state = 'scheduled'")),
        Index(f"{table}_running", "process_id", postgresql_where=text("state = 'running'")),
        Index(
            f"{table}_ended",
            "state",
            "finished_at",
            postgresql_where=text("state IN ('succeeded', 'failed', 'cancelled')"),
        ),
        Index(
            f"{table}_ticks",
            "schedule_id",
            "scheduled_for",
            unique=True,
            postgresql_where=text("schedule_id IS NOT NULL"),
        ),
        Index(
            f"{table}_unique_key",
            "unique_key",
            unique=True,
            postgresql_where=text(HAS_LIVE_KEY),
        ),
    )
