"""The enumerations and times of columns, in Python and in the database."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Generic, TypeVar

from sqlalchemy import ColumnElement, DateTime, Dialect, Text, TypeDecorator, case, literal_column
from sqlalchemy.types import TypeEngine

Words = TypeVar("Words", bound=StrEnum)

MAX_ATTEMPTS = 25
"""The default for jobs, if neither the task nor the enqueue gives another number."""
MOST_ATTEMPTS = 1_000_000_000
"""The largest number of attempts. The count stays there and never overflows."""


class JobState(StrEnum):
    """The state of a job. Equal to its plain string, in Python and in `where`."""

    scheduled = "scheduled"
    """The job waits for its time."""
    queued = "queued"
    """The job waits for a worker."""
    running = "running"
    """A worker has claimed it."""
    succeeded = "succeeded"
    """The task returned."""
    failed = "failed"
    """No attempt is left, or the policy of the task gave up."""
    cancelled = "cancelled"
    """Somebody cancelled it, the task raised `Cancel`, or a row among its arguments is gone."""


class CatchUp(StrEnum):
    """A schedule's handling of ticks that no clock was running to fire."""

    skip = "skip"
    """None of them fires."""
    latest = "latest"
    """The newest one fires."""
    all = "all"
    """All of them fire, oldest first, 100 at most."""


class Overlap(StrEnum):
    """A schedule's handling of a tick while the previous job has not ended."""

    allow = "allow"
    """The tick fires."""
    skip = "skip"
    """The tick does not fire."""


class TickOutcome(StrEnum):
    """The outcome of a tick of a schedule."""

    enqueued = "enqueued"
    """A job was enqueued."""
    skipped = "skipped"
    """No job was enqueued, since a former one had not ended or held the unique key."""
    missed = "missed"
    """No clock ran in time, and `catch_up` passed the tick over."""


WAITING = (JobState.scheduled, JobState.queued)
"""The states of a job that has not started, or waits for another attempt."""

LIVE = (*WAITING, JobState.running)
"""The states of a job that has not ended. At most one such job has a given `unique_key`."""

ENDED = (JobState.succeeded, JobState.failed, JobState.cancelled)
"""The states of a job that has ended, unless somebody retries it."""


HAS_LIVE_KEY = f"unique_key IS NOT NULL AND state IN ({', '.join(repr(str(state)) for state in LIVE)})"
"""The predicate of the unique index, in words that PostgreSQL recognises in ON CONFLICT."""


class WordType(TypeDecorator[Words], Generic[Words]):
    """Text in the database, a StrEnum in Python. A word that this version does not know stays plain text."""

    impl: TypeEngine[Any] | type[TypeEngine[Any]] = Text
    cache_ok: bool | None = True
    __module__ = "sqlalchemy.types"  # so that Alembic's autogenerate writes sa.Text(), which needs no import of ours

    def __init__(self, words: type[Words]) -> None:
        super().__init__()
        self.words = words

    def __repr__(self) -> str:
        return "Text()"

    def __reduce__(self) -> tuple[Any, ...]:
        return _word_type, (self.words,)

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else str(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        return self.words.__members__.get(value, value) if value is not None else None


def _word_type(words: type[Words]) -> WordType[Words]:
    return WordType(words)


PARKED = datetime(9999, 12, 31, tzinfo=UTC)
"""A `run_at` that never comes: `'infinity'` in the database. The job waits until somebody gives it another one."""


class RunAtType(TypeDecorator[datetime]):
    """A time with a time zone. `PARKED` stands for the database's 'infinity', which no `datetime` can represent."""

    impl: TypeEngine[Any] | type[TypeEngine[Any]] = DateTime
    cache_ok: bool | None = True
    __module__ = "sqlalchemy.types"  # as above

    def __init__(self) -> None:
        super().__init__(timezone=True)

    def __repr__(self) -> str:
        return "DateTime(timezone=True)"

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        return case((column == _INFINITY, _PARKED), else_=column)

    def bind_expression(self, bindparam: Any) -> ColumnElement[Any]:
        return case((bindparam == _PARKED, _INFINITY), else_=bindparam)


_INFINITY, _PARKED = (
    literal_column(f"TIMESTAMPTZ '{moment}'", DateTime(timezone=True)) for moment in ("infinity", "9999-12-31 UTC")
)
