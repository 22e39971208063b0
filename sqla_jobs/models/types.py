"""The enumerations and times in columns, and their types in Python and in the database."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Generic, TypeVar

import sqlalchemy as sa
from sqlalchemy.types import TypeEngine

Words = TypeVar("Words", bound=StrEnum)

MAX_ATTEMPTS = 25
"""The default `max_attempts` of a job, if neither the task nor the enqueue gives another number."""
MOST_ATTEMPTS = 1_000_000_000
"""The maximum number of attempts. The count stops there and never overflows."""


class JobState(StrEnum):
    """The state of a job. Each state equals its plain string, in Python and in `where`."""

    blocked = "blocked"
    """The job is waiting for other jobs to end."""
    scheduled = "scheduled"
    """The job is waiting for its time."""
    queued = "queued"
    """The job is waiting for a worker."""
    running = "running"
    """A worker has claimed the job."""
    succeeded = "succeeded"
    """The task returned."""
    failed = "failed"
    """No attempt is left, or the task's policy gave up."""
    cancelled = "cancelled"
    """The job was cancelled or has expired, the task raised `Cancel`, or a row among the arguments is gone."""


class IfFailed(StrEnum):
    """What happens to a job if a job before it fails, is cancelled or is deleted."""

    cancel = "cancel"
    """The job is cancelled, too."""
    run = "run"
    """The job runs once the other jobs have ended."""
    hold = "hold"
    """The job waits until a person retries the other job, or this one."""


class StepKind(StrEnum):
    """The kind of a step."""

    step = "step"
    """The step calls a function, and its result is stored."""
    sleep = "sleep"
    """The job sleeps."""
    signal = "signal"
    """The step waits for a signal."""
    timeout = "timeout"
    """The step has waited for a signal that did not come in time."""


class CatchUp(StrEnum):
    """A schedule's handling of ticks that were missed because no clock was running."""

    skip = "skip"
    """None of the ticks fires."""
    latest = "latest"
    """Only the newest tick fires."""
    all = "all"
    """The newest 100 ticks fire, oldest first."""


class Overlap(StrEnum):
    """A schedule's handling of a tick when the previous job has not ended."""

    allow = "allow"
    """The tick fires."""
    skip = "skip"
    """The tick does not fire."""


class TickOutcome(StrEnum):
    """The outcome of a schedule's tick."""

    enqueued = "enqueued"
    """A job was enqueued."""
    skipped = "skipped"
    """No job was enqueued, since an earlier one had not ended or held the unique key."""
    missed = "missed"
    """No clock fired the tick in time, and `catch_up` did not make up for it."""


WAITING = (JobState.scheduled, JobState.queued)
"""The states of a job that is not blocked, and waits for its first or another attempt."""

NOT_RUNNING = (JobState.blocked, *WAITING)
"""The states of a job that has not ended and is not running."""

LIVE = (*NOT_RUNNING, JobState.running)
"""The states of a job that has not ended. At most one such job has a given `unique_key`."""

ENDED = (JobState.succeeded, JobState.failed, JobState.cancelled)
"""The final states, which a job leaves only if it is retried."""


LIVE_WORDS = f"({', '.join(repr(str(state)) for state in LIVE)})"
"""The live states as SQL, for `state IN …`."""

HAS_LIVE_KEY = f"unique_key IS NOT NULL AND state IN {LIVE_WORDS}"
"""The predicate of the unique index. ON CONFLICT must repeat it in the same words."""


class WordType(sa.TypeDecorator[Words], Generic[Words]):
    """Text in the database, a StrEnum in Python. A word that this version does not know remains plain text."""

    impl: TypeEngine[Any] | type[TypeEngine[Any]] = sa.Text
    cache_ok: bool | None = True
    # so that Alembic's autogenerate writes sa.Text(), which does not need to import this library
    __module__ = "sqlalchemy.types"

    def __init__(self, words: type[Words]) -> None:
        super().__init__()
        self.words = words

    def __repr__(self) -> str:
        return "Text()"

    def __reduce__(self) -> tuple[Any, ...]:
        return _word_type, (self.words,)

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        return None if value is None else str(value)

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> Any:
        return self.words.__members__.get(value, value) if value is not None else None


def _word_type(words: type[Words]) -> WordType[Words]:
    return WordType(words)


PARKED = datetime(9999, 12, 31, tzinfo=UTC)
"""A `run_at` that never comes: `'infinity'` in the database. The job waits until it is given another `run_at`."""


class RunAtType(sa.TypeDecorator[datetime]):
    """A time with a time zone. `PARKED` stands for the database's 'infinity', which no `datetime` can represent.

    Other times that no `datetime` can represent are read as the nearest that one can.
    """

    impl: TypeEngine[Any] | type[TypeEngine[Any]] = sa.DateTime
    cache_ok: bool | None = True
    __module__ = "sqlalchemy.types"  # for the same reason as in `WordType`

    def __init__(self) -> None:
        super().__init__(timezone=True)

    def __repr__(self) -> str:
        return "DateTime(timezone=True)"

    def column_expression(self, column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        return sa.case((column > _PARKED, _PARKED), (column < _FIRST, _FIRST), else_=column)

    def bind_expression(self, bindparam: Any) -> sa.ColumnElement[Any]:
        return sa.case((bindparam == _PARKED, _INFINITY), else_=bindparam)


_INFINITY, _PARKED, _FIRST = (
    sa.literal_column(f"TIMESTAMPTZ '{moment}'", sa.DateTime(timezone=True))
    for moment in ("infinity", "9999-12-31 UTC", "0001-01-02 UTC")
)
