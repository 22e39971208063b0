"""`RunContext`: the facts about a run, for the run's task."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar, overload

from sqla_jobs.tasks.resources import NO_RESOURCES, Resources

if TYPE_CHECKING:
    from sqla_jobs.models.workflow_columns import BatchMixin
    from sqla_jobs.queries.upstream import Upstream
    from sqla_jobs.tasks.task import Task

T = TypeVar("T")


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
    upstream: Upstream | None = field(default=None, repr=False)
    """Reads the results of the jobs before this one. `None` outside of workers."""
    publish: Callable[[float, str | None], None] = field(default=_nowhere, repr=False)
    """The function that `progress` calls."""

    @property
    def remaining(self) -> float | None:
        """The seconds until `deadline`, never below zero; `None` without a deadline."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    @overload
    def results(self, task: Task[..., Coroutine[Any, Any, T], Any], /) -> list[T]: ...
    @overload
    def results(self, task: Task[..., T, Any], /) -> list[T]: ...
    def results(self, task: Task[..., Any, Any], /) -> list[Any]:
        """Return the results of the jobs that this one was enqueued after, as values of the task's return type.

        - `task`: a task. Only its jobs count, and of these only those that succeeded.

        They come in the order of `after=`; the jobs of a batch in the order of their ids. They are read from the
        database at each call.

        Raises `ArgumentsError` if a stored result does not fit the return type.
        """
        if self.upstream is None:
            return []
        declaration = task.declaration
        stored = self.upstream.results(self.job_id, [declaration.name, *declaration.aliases])
        return [declaration.as_result(value) for value in stored]

    @property
    def batch(self) -> BatchMixin | None:
        """The job's batch, for `options(batch=…)` of jobs that join it; `None` if it has none.

        Its other attributes are not loaded: `session.merge(run.batch)` returns the row. It is read at each access.
        """
        return None if self.upstream is None else self.upstream.batch(self.job_id)

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
