"""`RunContext`: the facts about a run, for the run's task."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from sqla_jobs.tasks.resources import NO_RESOURCES, Resources


def _nowhere(fraction: float, message: str | None) -> None:
    """Discard progress."""


@dataclass(slots=True, eq=False, kw_only=True)
class RunContext:
    """One run of a task: its job, its attempt, its deadline. A leading parameter with this annotation receives it."""

    job_id: int
    """The id of the job, the same in each attempt."""
    run_id: int
    """The id that this attempt's row of `jobs.Run` will have."""
    task: str
    """The name of the task, as stored with the job."""
    queue: str
    """The queue from which the job was claimed."""
    attempt: int
    """The number of this attempt, counted from 1."""
    max_attempts: int
    """The attempt after which a failure is final."""
    deadline: float | None = None
    """The value of `time.monotonic()` at which the attempt is interrupted.

    `None` if neither the task nor the worker has a `timeout=`.
    """
    scheduled_for: datetime | None = None
    """The tick of the schedule that enqueued the job; `None` if no schedule did."""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    """The headers that were stored with the job when it was enqueued, such as the id of the request."""
    cancel_requested: bool = False
    """True once somebody has asked for this job to be cancelled; known within about a second."""
    resources: Resources = field(default=NO_RESOURCES, repr=False)
    """The objects that the process's worker contexts have yielded, by type: `run.resources[httpx.Client]`."""
    publish: Callable[[float, str | None], None] = field(default=_nowhere, repr=False)
    """The function that `progress` calls."""

    @property
    def remaining(self) -> float | None:
        """The seconds until `deadline`, never below zero; `None` without a deadline."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def progress(self, fraction: float, message: str | None = None) -> None:
        """Show how far the run is, as `Job.progress` and `Job.progress_message`.

        - `fraction`: from 0 to 1.
        - `message`: text for people; None removes the former one.

        Cheap to call often: a worker stores the newest value at most ten times a second.

        Raises `ValueError` for a fraction that is no number from 0 to 1.
        """
        if not (math.isfinite(fraction) and 0 <= fraction <= 1):
            raise ValueError(f"progress must be a number from 0 to 1, got {fraction!r}")
        self.publish(float(fraction), message)
