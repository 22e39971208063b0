"""What a run can ask about itself."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime


def _nowhere(fraction: float, message: str | None) -> None:
    """Progress of a run that nobody watches."""


@dataclass(slots=True, eq=False)
class RunContext:
    """Handed to a task that has a parameter annotated with this class.

    `deadline` is on the scale of `time.monotonic()`, in seconds, and `None` without a `timeout=`.
    """

    job_id: int
    run_id: int
    task: str
    queue: str
    attempt: int
    max_attempts: int
    deadline: float | None = None
    scheduled_for: datetime | None = None
    """The tick of the schedule that enqueued the job; `None` where none did."""
    cancel_requested: bool = False
    """Whether somebody asked for this job to be cancelled; known within about a second."""
    publish: Callable[[float, str | None], None] = field(default=_nowhere, repr=False)
    """Where `progress` goes."""

    @property
    def remaining(self) -> float | None:
        """Seconds until `deadline`, never below zero; `None` without one."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def progress(self, fraction: float, message: str | None = None) -> None:
        """Show how far the run is, a fraction from 0 to 1, as `Job.progress` and `Job.progress_message`.

        Cheap to call often: a worker stores the newest value about once a second.
        """
        if not (math.isfinite(fraction) and 0 <= fraction <= 1):
            raise ValueError(f"progress must be a number from 0 to 1, got {fraction!r}")
        self.publish(float(fraction), message)
