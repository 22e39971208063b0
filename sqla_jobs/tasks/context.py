"""What a run can ask about itself."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from sqla_jobs.tasks.resources import NO_RESOURCES, Resources


def _nowhere(fraction: float, message: str | None) -> None:
    """Progress of a run that nobody watches."""


@dataclass(slots=True, eq=False, kw_only=True)
class RunContext:
    """Handed to a task that has a parameter annotated with this class."""

    job_id: int
    """The id of the job, the same in each attempt."""
    run_id: int
    """The id that the row of `jobs.Run` for this attempt will have."""
    task: str
    """The name of the task, as it is stored with the job."""
    queue: str
    """The queue from which the job was claimed."""
    attempt: int
    """The number of this attempt, from 1."""
    max_attempts: int
    """The attempt after which a failure is final."""
    deadline: float | None = None
    """When the attempt is interrupted, on the scale of `time.monotonic()`.

    `None` without a `timeout=` of the task or the worker.
    """
    scheduled_for: datetime | None = None
    """The tick of the schedule that enqueued the job; `None` where none did."""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    """What was given along with the job when it was enqueued, such as the id of the request."""
    cancel_requested: bool = False
    """Whether somebody asked for this job to be cancelled; known within about a second."""
    resources: Resources = field(default=NO_RESOURCES, repr=False)
    """What the worker contexts of the process have yielded, by type: `run.resources[httpx.Client]`."""
    publish: Callable[[float, str | None], None] = field(default=_nowhere, repr=False)
    """Where `progress` goes."""

    @property
    def remaining(self) -> float | None:
        """Seconds until `deadline`, never below zero; `None` without one."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def progress(self, fraction: float, message: str | None = None) -> None:
        """Show how far the run is, a fraction from 0 to 1, as `Job.progress` and `Job.progress_message`.

        Cheap to call often: a worker stores the newest value at most ten times a second.
        """
        if not (math.isfinite(fraction) and 0 <= fraction <= 1):
            raise ValueError(f"progress must be a number from 0 to 1, got {fraction!r}")
        self.publish(float(fraction), message)
