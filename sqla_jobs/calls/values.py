"""What goes into the statements of a job's way and comes out of them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Iterable
from datetime import datetime
from functools import lru_cache
from operator import attrgetter
from typing import NamedTuple

from sqla_jobs.rules.outcomes import Outcome

PRIORITIES = range(-10, 11)
EVERYWHERE = (-1,) * len(PRIORITIES)
"""ScanFloors for claims: the position at and below which they do not look, for each priority."""


MANY = 1000
"""Jobs that one statement changes at most."""


class Lease(NamedTuple):
    """The right of one process to finish one attempt at a job."""

    job_id: int
    run_id: int
    process_id: uuid.UUID
    task: str = ""
    """Empty where the database has not told the lease. The fields below are too."""
    queue: str = ""
    attempt: int = 0
    max_attempts: int = 0


class Rescued(NamedTuple):
    """A job that was taken back from a dead process, and its new state."""

    job_id: int
    state: str
    task: str
    queue: str
    attempt: int
    run_id: int
    process_id: uuid.UUID


class Claimed(NamedTuple):
    """A job this process holds, and its lease. `args` is JSON text; `elapsed` seconds since its first start."""

    job_id: int
    run_id: int
    process_id: uuid.UUID
    task: str
    queue: str
    priority: int
    position: int
    args: str
    attempt: int
    max_attempts: int
    headers: str | None
    """As JSON text."""
    waited: float
    """Seconds that it was due before the claim."""
    scheduled_for: datetime | None
    elapsed: float
    gates: tuple[str, ...] = ()


def read_headers(text: str | None) -> dict[str, str]:
    """Headers as they are stored. Other JSON of plain SQL is text here, or nothing if Python cannot read it."""
    try:
        found: dict[str, object] = {} if text is None else json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in found.items()}


class Among(NamedTuple):
    """Limits a statement over many jobs: only the ids in `only` (all if None), never those in `set_aside`."""

    only: Collection[int] | None = None
    set_aside: Collection[int] = ()

    def parameters(self) -> dict[str, str | None]:
        """For a statement with `is_among`."""
        return {
            "only_ids": None if self.only is None else numbers(self.only),
            "set_aside_ids": numbers(self.set_aside),
        }


ALL = Among()


class Promotion(NamedTuple):
    """What was queued because it is due, when the next one is, and who serves the queues that were asked for."""

    promoted: int
    due_in: float
    """Seconds until the next scheduled job is due: infinite where there is none, 0 where there may be more now."""
    workers: int
    """How many serve any of these queues."""
    has_limits: bool
    """Whether code or an operator ever limited anything, or a job waits behind a gate."""
    is_more: bool = False
    """Whether anything else was queued already. Only a poll tells."""


class RunEnd(NamedTuple):
    """The end of one attempt. Both times are seconds after the claim, by this process's monotonic clock."""

    lease: Lease | Claimed
    outcome: Outcome
    started: float = 0.0
    finished: float = 0.0
    progress: tuple[float, str | None] | None = None
    """What the run told of last, where that is not stored yet."""


def in_order(ends: Iterable[RunEnd]) -> list[RunEnd]:
    """By job id, so that two writers of the same rows, who lock them in this order, cannot deadlock."""
    return sorted(ends, key=_JOB_ID)


_JOB_ID = attrgetter("lease.job_id")


def numbers(values: Iterable[object]) -> str:
    """An array of values whose text needs no quotes: numbers, UUIDs, plain words."""
    return f"{{{','.join(map(str, values))}}}"


def texts(values: list[str | None]) -> str:
    """An array of texts, shortened to nothing where none is given."""
    return "{}" if values.count(None) == len(values) else numbers(map(_quoted, values))


@lru_cache(maxsize=64)
def names(given: tuple[str, ...]) -> str:
    """The same of few texts that are asked for again and again."""
    return texts([*given])


def _quoted(text: str | None) -> str:
    if text is None:
        return "NULL"
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
