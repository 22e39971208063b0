"""Lookouts, through which a worker learns of jobs to claim."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sqla_jobs.queries.values import Promotion
from sqla_jobs.runtime.listener import Listener
from sqla_jobs.runtime.promoter import BUSY, SOON, Promoter, poll_in
from sqla_jobs.worker.services import WorkerServices


class JobListener(Protocol):
    """Receives notifications about new jobs in a queue. The queue "" means any queue."""

    def heard(self, queue: str) -> bool:
        """Record that `queue` has new jobs, without waiting. Return whether this worker answers for those jobs."""
        ...

    @property
    def has_free_slot(self) -> bool:
        """True if a slot of any queue is waiting for a job."""
        ...

    def look_again(self) -> bool:
        """Request a look for jobs in all queues, even below the floors. Return whether this worker answers for them."""
        ...


class Listening(Protocol):
    """Notifies a `JobListener` from `start` to `stop`. It may be stopped without a start."""

    def start(self) -> None: ...
    def stop(self) -> None: ...


class Lookout(Protocol):
    """Listens, polls and promotes, for one worker or for several."""

    @property
    def promote_at(self) -> float:
        """When the worker is to promote next, by `time.monotonic()`."""
        ...

    @property
    def workers(self) -> int:
        """The number of workers that serve any of this worker's queues."""
        ...

    @property
    def has_limits(self) -> bool:
        """True if the table of limits has rows, or a queued job has gates."""
        ...

    @property
    def has_blocked(self) -> bool:
        """True if jobs are blocked."""
        ...

    def promote(self, now: float) -> bool:
        """Queue the jobs that are due. Return whether any jobs may have become ready to start."""
        ...

    def expect(self, delay: float) -> bool:
        """Expect a job to be due in `delay` seconds. Return whether the next promotion is now earlier."""
        ...

    def expect_new(self, *, is_busy: bool) -> None:
        """Expect new jobs, one of which may have a delay. `is_busy` means that no slot is free for new jobs."""
        ...

    def poll_in(self) -> float:
        """Return how many seconds to wait before looking again in a queue that had no more jobs."""
        ...

    def found_more(self, queue: str) -> None:
        """Record that other workers may find more jobs in this queue. This is called once between two rests."""
        ...

    def listener(self, job_listener: JobListener) -> Listening:
        """Return what notifies `job_listener` of new jobs, once it is started."""
        ...


class OwnLookout:
    """The lookout of a worker that listens and polls for itself."""

    def __init__(self, services: WorkerServices, tasks: Sequence[str]) -> None:
        self._found = Promotion.of([])
        """The result of the last promotion."""
        self._engine = services.engine
        self._settings = services.settings
        self._channel = services.models.channel
        self._promoter = Promoter(services.claims, services.queries, services.settings, services.set_aside, tasks=tasks)

    @property
    def promote_at(self) -> float:
        return self._promoter.at

    @property
    def workers(self) -> int:
        return self._found.workers

    @property
    def has_limits(self) -> bool:
        return self._found.has_limits

    @property
    def has_blocked(self) -> bool:
        return self._found.has_blocked

    def promote(self, now: float) -> bool:
        self._found, is_news = self._promoter.promote(now, again_at=now + poll_in(self._settings))
        return is_news

    def expect(self, delay: float) -> bool:
        return self._promoter.expect(delay)

    def expect_new(self, *, is_busy: bool) -> None:
        self._promoter.expect(BUSY if is_busy else SOON)

    def poll_in(self) -> float:
        return poll_in(self._settings)

    def found_more(self, queue: str) -> None:
        """Do nothing: other workers listen for themselves."""

    def listener(self, job_listener: JobListener) -> Listening:
        return Listener(self._engine, self._channel, job_listener.heard, patience=self._settings.patience)
