"""Parameters and results of the statements that claim, run and finish a job."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Collection, Iterable
from datetime import datetime
from functools import lru_cache
from operator import attrgetter
from typing import NamedTuple

from sqla_jobs.rules.outcomes import Outcome

PRIORITIES = range(-10, 11)
TIMES = ("run_at", "expires_at")
"""The columns of a new job in which a timedelta counts from now, by the server's clock."""
EVERYWHERE = (-(2**63),) * len(PRIORITIES)
"""One floor per priority, each below all jobs. A claim looks only at positions above the floor."""


MANY = 1000
"""The maximum number of jobs that one statement changes."""


class Lease(NamedTuple):
    """The right of one process to finish one attempt at a job."""

    job_id: int
    run_id: int
    process_id: uuid.UUID
    task: str = ""
    """This field and those below are empty or 0 if the lease was not read from the database."""
    queue: str = ""
    attempt: int = 0
    max_attempts: int = 0
    headers: str | None = None
    """JSON text."""


def of_lease(lease: Lease | Claimed) -> dict[str, int | uuid.UUID]:
    """Return the parameters for a statement with the piece `$has_lease`."""
    return {"lease_job_id": lease.job_id, "lease_run_id": lease.run_id, "lease_process_id": lease.process_id}


class Rescued(NamedTuple):
    """A job that was rescued from a dead process, and its new state."""

    job_id: int
    state: str
    task: str
    queue: str
    attempt: int
    max_attempts: int
    run_id: int
    process_id: uuid.UUID
    headers: str | None
    """JSON text."""


class Claimed(NamedTuple):
    """A job that this process holds, with its lease.

    `args` is JSON text; `elapsed` is the number of seconds since the job's first start.
    """

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
    """JSON text."""
    waited: float
    """Seconds between the job's due time and its claim."""
    scheduled_for: datetime | None
    elapsed: float
    gates: tuple[str, ...] = ()
    timeout: float | None = None
    """The job's own time limit, in seconds."""
    is_expired: bool = False
    """True if the job has never begun, and may no longer begin."""


def read_headers(text: str | None) -> dict[str, str]:
    """Return stored headers as a dict. Values that are not strings become JSON text; unreadable headers become {}."""
    try:
        found: object = {} if text is None else json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        return {}
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in found.items()}


class Among(NamedTuple):
    """A filter for a statement over many jobs: the ids in `only` (None means all ids), without those in `set_aside`."""

    only: Collection[int] | None = None
    set_aside: Collection[int] = ()

    def parameters(self) -> dict[str, str | None]:
        """Return the parameters for a statement that uses `is_among`."""
        return {
            "only_ids": None if self.only is None else numbers(self.only),
            "set_aside_ids": numbers(self.set_aside),
        }


ALL = Among()


class Promotion(NamedTuple):
    """The result of a promotion, and whether workers, limits and blocked jobs exist."""

    promoted: int
    due_in: float
    """Seconds until a scheduled job is due or a pause ends.

    Infinite if neither will happen; 0 if more jobs may be due.
    """
    workers: int
    """The number of workers that serve any of the given queues."""
    has_limits: bool
    """True if code or an operator ever declared a limit, or a job waits behind a gate."""
    has_blocked: bool
    """True if a job is blocked."""
    is_more: bool = False
    """True if other jobs were already queued. Only a poll sets this field."""

    @classmethod
    def of(cls, parts: Collection[Promotion]) -> Promotion:
        """Return the result of several promotions."""
        promoted, due_in, workers, *flags = zip(*parts, _NOTHING, strict=True)
        return cls(sum(promoted), min(due_in), max(workers), *map(any, flags))


_NOTHING = Promotion(0, math.inf, 1, has_limits=False, has_blocked=False)


class RunEnd(NamedTuple):
    """The end of one attempt. `started` and `finished` are seconds after the claim, by a monotonic clock."""

    lease: Lease | Claimed
    outcome: Outcome
    started: float = 0.0
    finished: float = 0.0
    progress: tuple[float, str | None] | None = None
    """The last progress that the run reported, if any."""


def in_order(ends: Iterable[RunEnd]) -> list[RunEnd]:
    """Sort ends by job id. Two writers of the same rows lock them in this order, so they cannot deadlock."""
    return sorted(ends, key=_JOB_ID)


_JOB_ID = attrgetter("lease.job_id")


def numbers(values: Iterable[object]) -> str:
    """Return an array literal of values whose text needs no quotes: numbers, UUIDs, plain words."""
    return f"{{{','.join(map(str, values))}}}"


def texts(values: list[str | None]) -> str:
    """Return an array literal of texts, or an empty one if every value is None."""
    return "{}" if values.count(None) == len(values) else numbers(map(_quoted, values))


@lru_cache(maxsize=64)
def names(given: tuple[str, ...]) -> str:
    """Return `texts` of `given`, cached: the same few values are requested again and again."""
    return texts([*given])


def _quoted(text: str | None) -> str:
    if text is None:
        return "NULL"
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
