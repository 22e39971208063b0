"""`jobs.follow` and `jobs.wait`."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from sqlalchemy import Engine
from sqlalchemy.orm import Session, selectinload
from sqlalchemy.orm.attributes import instance_state

from sqla_jobs.errors import ArgumentsError, JobFailed, UnknownJob
from sqla_jobs.following.hub import Watch, hub_of
from sqla_jobs.following.updates import JobUpdate
from sqla_jobs.models.columns import JobMixin
from sqla_jobs.models.mapping import Models
from sqla_jobs.models.types import JobState
from sqla_jobs.rules.checks import check_seconds
from sqla_jobs.rules.wording import plural

J = TypeVar("J", bound=JobMixin)

FIRST_READ = 10.0
"""Seconds that the first read may take, however short the timeout is: the server may have to accept a connection."""


class Following:
    """The updates of one job, for `for` and for `async for`. The last one says how the job ended.

    Between two updates the job may have been in several states; the newest is given. The first update comes whatever
    the timeout is. Raises `TimeoutError` if the job does not end in time, and `UnknownJob` if the database has no such
    job, or no longer.
    """

    def __init__(self, engine: Engine, models: Models[Any], job_id: int, timeout: float | None) -> None:
        self._engine = engine
        self._models = models
        self._job_id = job_id
        self._timeout = timeout

    def __iter__(self) -> Generator[JobUpdate]:
        changed = threading.Event()
        began = time.monotonic()
        with self._watched(changed.set) as watch:
            seen: JobUpdate | None = None
            while seen is None or not seen.has_ended:
                if not changed.wait(self._left(began, seen)):
                    raise self._late(seen)
                changed.clear()
                if (update := self._newest(watch)) != seen:
                    seen = update
                    yield update

    async def __aiter__(self) -> AsyncGenerator[JobUpdate]:
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop is closed, and nobody waits any more
                loop.call_soon_threadsafe(changed.set)

        began = time.monotonic()
        with self._watched(wake) as watch:
            seen: JobUpdate | None = None
            while seen is None or not seen.has_ended:
                try:
                    async with asyncio.timeout(self._left(began, seen)):
                        await changed.wait()
                except TimeoutError:
                    raise self._late(seen) from None
                changed.clear()
                if (update := self._newest(watch)) != seen:
                    seen = update
                    yield update

    def _left(self, began: float, seen: JobUpdate | None) -> float | None:
        """Return the seconds that the next update may take. The first one comes even with `timeout=0`."""
        if self._timeout is None:
            return None
        most = max(self._timeout, FIRST_READ) if seen is None else self._timeout
        return max(0.0, began + most - time.monotonic())

    @contextmanager
    def _watched(self, changed: Callable[[], None]) -> Generator[Watch]:
        watch = Watch(self._job_id, changed)
        hub_of(self._engine, self._models).add(self._engine, watch)
        try:
            yield watch
        finally:
            hub_of(self._engine, self._models).remove(watch)

    def _newest(self, watch: Watch) -> JobUpdate:
        if watch.is_gone:
            raise UnknownJob(
                f"there is no job {self._job_id} in this database: it was deleted, or the transaction that enqueued it "
                "has not committed, so follow it after session.commit()"
            )
        assert watch.newest is not None, "it has changed"
        return watch.newest

    def _late(self, seen: JobUpdate | None) -> TimeoutError:
        stands = "it has not been read yet" if seen is None else f"it is {seen.state}, attempt {seen.attempt}"
        return TimeoutError(f"job {self._job_id} has not ended within {self._timeout:g} s: {stands}")


def follow(engine: Engine, models: Models[Any], job: JobMixin | int, timeout: float | None) -> Following:
    """Return the updates of a job. Raises `ArgumentsError` if it has no id."""
    if timeout is not None:
        timeout = check_seconds("timeout", timeout)
    return Following(engine, models, _id_of(job), timeout)


def wait(engine: Engine, models: Models[J], job: JobMixin | int, timeout: float | None) -> J:
    """Return the job once it has succeeded. Raises `JobFailed`, and the errors of `Following`."""
    *_, last = follow(engine, models, job, timeout)
    return _ended(engine, models, last)


async def wait_async(engine: Engine, models: Models[J], job: JobMixin | int, timeout: float | None) -> J:  # noqa: ASYNC109
    """`wait` for an event loop."""
    last = [update async for update in follow(engine, models, job, timeout)][-1]
    return await asyncio.to_thread(_ended, engine, models, last)


def _id_of(job: JobMixin | int) -> int:
    if isinstance(job, int):
        return job
    if not isinstance(job, JobMixin):
        raise ArgumentsError(f"a job or its id is followed, got {job!r:.100}")
    identity = instance_state(job).identity  # reading job.id would refresh it, on a connection of its session
    if identity is None:
        raise ArgumentsError(
            "the job is not in the database yet, so it cannot be followed: follow it after session.commit()"
        )
    return int(identity[0])


def _ended(engine: Engine, models: Models[J], last: JobUpdate) -> J:
    """Return the job after its last update, with its runs, outside any session. Raises `JobFailed` and `UnknownJob`."""
    with Session(engine) as session:
        job = session.get(models.Job, last.job_id, options=[selectinload(models.Job.runs)])
        if job is None:
            raise UnknownJob(f"job {last.job_id} was deleted right after it had {last.state}")
        session.expunge_all()
    if last.state != JobState.succeeded:
        why = f": {last.error_type}: {last.error}" if last.error_type else ""
        how = "was cancelled" if last.state == JobState.cancelled else f"failed after {plural(last.attempt, 'attempt')}"
        raise JobFailed(f"job {last.job_id} ({last.task}) {how}{why}", job)
    return job
