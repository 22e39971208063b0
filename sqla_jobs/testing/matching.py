"""Comparison of stored jobs with the arguments and options that a test expects."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import sqlalchemy as sa
from pydantic_core import to_jsonable_python
from sqlalchemy.orm import Session

from sqla_jobs.database.sharding import is_sharded, shard_of
from sqla_jobs.errors import ArgumentsError
from sqla_jobs.models.columns import JobMixin
from sqla_jobs.models.mapping import Models
from sqla_jobs.models.workflow_columns import BatchMixin
from sqla_jobs.rules.redaction import ENCRYPTED, HIDDEN, is_erased
from sqla_jobs.tasks.arguments import Codec
from sqla_jobs.tasks.declaration import Declaration
from sqla_jobs.tasks.encryption import codec_of
from sqla_jobs.tasks.enqueuer import Enqueuer

_ANOTHER = f"{HIDDEN}, a different value"
_CLOSE = 1.0
"""Seconds by which a delay may differ. A delay begins shortly before the row's `created_at`."""
_ABSENT: Any = object()


class Compared(NamedTuple):
    """An expected value and the job's value, both as JSON without secrets."""

    name: str
    wanted: Any
    found: Any
    is_equal: bool

    @property
    def is_there(self) -> bool:
        """False if the job has no such argument."""
        return self.found is not _ABSENT


class Criteria:
    """The expected arguments and options. Raises `ArgumentsError` for a value that no job of the task could have."""

    def __init__(self, session: Session, enqueuer: Enqueuer[..., Any], arguments: Mapping[str, Any]) -> None:
        if (error := enqueuer._unknown(arguments)) is not None:
            raise error
        self._session = session
        self._enqueuer = enqueuer
        self._declaration = enqueuer._declaration
        self._shards: list[Any] = []
        """The shards of the given rows, jobs and batches, in a session with several databases."""
        if is_sharded(session):
            waits_for = enqueuer._waiting.named if enqueuer._waiting else []
            rows = [*waits_for, *(row for _, row in self._declaration.codec.rows(arguments))]
            self._shards = [*{shard_of(session, row) for row in rows}]
        self._stored = some_arguments(session, self._declaration, arguments)
        self._decoded = {name: self._decode(name, value) for name, value in self._stored.items()}

    @property
    def task(self) -> str:
        """The name of the task."""
        return self._declaration.name

    @property
    def wanted(self) -> dict[str, Any]:
        """The expected arguments and options, as JSON without secrets."""
        secrets = self._declaration.secrets(self._stored)
        chosen: dict[str, Any] = dict(self._enqueuer._options) | self._waiting
        chosen = to_jsonable_python(chosen, timedelta_mode="float", fallback=repr)
        return {**self._declaration.shown(self._stored), **secrets.json(chosen)}

    @cached_property
    def _waiting(self) -> dict[str, Any]:
        """The expected options `after` and `batch`, by name."""
        chosen = self._enqueuer._options
        after = {"after": _named(chosen["after"])} if "after" in chosen else {}
        return after | ({"batch": _name_of(chosen["batch"])} if "batch" in chosen else {})

    def compare(self, job: JobMixin) -> list[Compared]:
        """Compare each expected value with the job's. A default counts as a given argument."""
        return [*self._of_arguments(job), *self._of_rows(job), *self._of_options(job)]

    def _of_rows(self, job: JobMixin) -> Iterator[Compared]:
        """Compare the databases: a row with the same key in another one is another row."""
        if self._shards and (found := [shard_of(self._session, job)]) != self._shards:
            yield Compared("shards", self._shards, found, is_equal=False)

    def _of_arguments(self, job: JobMixin) -> Iterator[Compared]:
        given = {**self._declaration.default_arguments, **arguments_of(job)}
        shown = self._declaration.shown(given)
        for name, wanted in self._declaration.shown(self._stored).items():
            is_equal = name in given and self._decode(name, given[name]) == self._decoded[name]
            found = shown.get(name, _ABSENT)
            yield Compared(name, wanted, _ANOTHER if found in (HIDDEN, ENCRYPTED) and not is_equal else found, is_equal)

    def _of_options(self, job: JobMixin) -> Iterator[Compared]:
        for name, wanted in self._enqueuer._options.items():
            if name == "delay":
                yield self._of_delay(wanted.total_seconds(), (job.run_at - job.created_at).total_seconds())
            elif name == "columns":
                for column, value in wanted.items():
                    yield self._option(job, column, value, getattr(job, column))
            elif name == "after":
                yield self._option(
                    job, name, self._waiting[name], _read_after(self._session, self._enqueuer._models, job)
                )
            elif name == "batch":
                yield self._option(
                    job, name, self._waiting[name], _read_batch(self._session, self._enqueuer._models, job)
                )
            elif name == "headers":  # header sources may have added others
                found = {header: (job.headers or {}).get(header) for header in wanted}
                yield self._option(job, name, wanted, found)
            elif name != "unique":
                yield self._option(job, name, wanted, getattr(job, name))
        if "unique" in self._enqueuer._options and self._enqueuer._unique is not None:
            yield self._option(job, "unique_key", self._enqueuer._unique.key_of(arguments_of(job)), job.unique_key)

    def _of_delay(self, wanted: float, found: float) -> Compared:
        return Compared("delay", wanted, round(found, 1), abs(found - wanted) < _CLOSE)

    def _option(self, job: JobMixin, name: str, wanted: Any, found: Any) -> Compared:
        secrets = self._declaration.secrets(job.args)
        one, other = (secrets.json(to_jsonable_python(value, fallback=repr)) for value in (wanted, found))
        return Compared(name, one, other, wanted == found)

    def _decode(self, name: str, value: Any) -> Any:
        try:
            return self._codec.decode(json.dumps({name: value}))[name]
        except ArgumentsError:
            return _ABSENT

    @cached_property
    def _codec(self) -> Codec:
        return _of_some(self._declaration)


def some_arguments(session: Session, declaration: Declaration, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Encode some of a task's arguments. Raises `ArgumentsError` for a value that does not fit."""
    return _of_some(declaration).stored(session, arguments)


def _of_some(declaration: Declaration) -> Codec:
    """Return a codec for the task that treats all arguments as optional."""
    parameters = [
        one.replace(kind=inspect.Parameter.KEYWORD_ONLY, default=None)
        for one in declaration.signature.arguments.parameters.values()
    ]
    some = replace(declaration.signature, arguments=inspect.Signature(parameters))
    return codec_of(declaration.name, some, declaration.sensitive, declaration.encryption, declaration.secret)


def arguments_of(job: JobMixin) -> Mapping[str, Any]:
    """Return the stored arguments; none if they were erased."""
    return {} if is_erased(job.args) else job.args


def _named(given: Iterable[JobMixin | BatchMixin]) -> list[str]:
    """Return the names of these jobs and batches, sorted: `job 17 (fetch)` or `batch 3 (import 17)`."""
    return sorted(map(_name_of, given))


def _name_of(one: JobMixin | BatchMixin) -> str:
    """Return the name of a job or a batch."""
    if isinstance(one, BatchMixin):
        return f"batch {one.id} ({one.name})" if one.name else f"batch {one.id}"
    return f"job {one.id} ({one.task})"


def _read_after(session: Session, models: Models[Any], job: JobMixin) -> list[str]:
    """Return the names of the jobs and batches that a job was enqueued after, sorted."""
    edge: Any = models.Edge
    of_job = edge.job_id == job.id
    jobs = sa.select(models.Job).join(edge, edge.needs_id == models.Job.id).where(of_job)
    batches = sa.select(models.Batch).join(edge, edge.batch_id == models.Batch.id).where(of_job)
    return _named([*session.scalars(jobs), *session.scalars(batches)])


def _read_batch(session: Session, models: Models[Any], job: JobMixin) -> str | None:
    """Return the name of a job's batch."""
    batch = None if job.batch_id is None else session.get(models.Batch, job.batch_id)
    return None if batch is None else _name_of(batch)
