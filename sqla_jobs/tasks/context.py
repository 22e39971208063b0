"""`RunContext`: the facts of a run for its task."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime


def _nowhere(fraction: float, message: str | None) -> None:
    """Discard progress."""


@dataclass(slots=True, eq=False, kw_only=True)
class RunContext:
    """The facts of a run, injected into a task that has a parameter annotated with this class."""

    job_id: int
    """The id of the job, the same in each attempt."""
    run_id: int
    """The future id of the row of `jobs.Run` for this attempt."""
    task: str
    """The name of the task, as it is stored with the job."""
    queue: str
    """The queue from which the job was claimed."""
    attempt: int
    """The number of this attempt, from 1."""
    max_attempts: int
    """The attempt after which a failure is final."""
    deadline: float | None = None
    """The moment of `time.monotonic()` at which the attempt is interrupted.

    `None` if neither the task nor the worker has a `timeout=`.
    """
    scheduled_for: datetime | None = None
    """The tick of the schedule that enqueued the job; `None` if no schedule did."""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    """The headers that were stored with the job, such as the id of a request."""
    cancel_requested: bool = False
    """True once the job's cancel was requested, with a delay of about a second."""
    publish: Callable[[float, str | None], None] = field(default=_nowhere, repr=False)
    """The function that `progress` calls."""

    @property
    def remaining(self) -> float | None:
        """The seconds until `deadline`, never below zero; `None` without one."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def progress(self, fraction: float, message: str | None = None) -> None:
        """Publish the progress, a fraction from 0 to 1, as `Job.progress` and `Job.progress_message`.

        Frequent calls are cheap: a worker stores the newest value at most ten times a second.
        """
        if not (math.isfinite(fraction) and 0 <= fraction <= 1):
            raise ValueError(f"progress must be a number from 0 to 1, got {fraction!r}")
        self.publish(float(fraction), message)
