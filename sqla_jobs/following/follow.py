"""The implementation of `jobs.follow` and `jobs.wait`."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any, Generic, Literal, TypeVar, cast

import sqlalchemy as sa
from sqlalchemy.orm import InstanceState, Session, selectinload
from sqlalchemy.orm.attributes import instance_state

from sqla_jobs.database.refusals import reason
from sqla_jobs.errors import ArgumentsError, JobFailed, UnknownJob
from sqla_jobs.following.hub import Watch, hub_of
from sqla_jobs.following.updates import Followed, JobUpdate, Update, in_words
from sqla_jobs.models.columns import JobMixin
from sqla_jobs.models.mapping import Models
from sqla_jobs.models.types import JobState
from sqla_jobs.models.workflow_columns import BatchMixin
from sqla_jobs.rules.redaction import NOTHING
from sqla_jobs.rules.value_checks import check_id, check_seconds
from sqla_jobs.rules.wording import plural

J = TypeVar("J", bound=JobMixin)
U_co = TypeVar("U_co", bound=Update, covariant=True)

FIRST_READ = 10.0
"""How many seconds the first read may take, even if the timeout is shorter: the process may first have to connect."""


class Following(Generic[U_co]):
    """The updates of a job or a batch, to iterate over with `for` or `async for`.

    The last update shows how the job or batch ended. Between two updates a job may have been in several states; an
    update gives the newest one. The first update comes even with `timeout=0`. Raises `TimeoutError` if the job or the
    batch does not end in time, and `UnknownJob` if it does not exist in the database, or no longer exists.
    """

    def __init__(self, engine: sa.Engine, models: Models[Any], followed: Followed, timeout: float | None) -> None:
        self._engine = engine
        self._models = models
        self._followed = followed
        self._timeout = timeout

    def __iter__(self) -> Generator[U_co]:
        changed = threading.Event()
        began = time.monotonic()
        with self._watched(changed.set) as watch:
            seen: U_co | None = None
            while seen is None or not seen.has_ended:
                if not changed.wait(self._left(began, seen, watch)):
                    raise self._late(watch)
                changed.clear()
                if (update := self._newest(watch)) is not None and update != seen:
                    seen = update
                    yield update

    async def __aiter__(self) -> AsyncGenerator[U_co]:
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop is closed, and nobody is waiting any more
                loop.call_soon_threadsafe(changed.set)

        began = time.monotonic()
        with self._watched(wake) as watch:
            seen: U_co | None = None
            while seen is None or not seen.has_ended:
                try:
                    async with asyncio.timeout(self._left(began, seen, watch)):
                        await changed.wait()
                except TimeoutError:
                    raise self._late(watch) from None
                changed.clear()
                if (update := self._newest(watch)) is not None and update != seen:
                    seen = update
                    yield update

    def _left(self, began: float, seen: U_co | None, watch: Watch) -> float | None:
        """Return how many seconds the next update may take.

        The first update comes even with `timeout=0`, unless it cannot be read.
        """
        if self._timeout is None:
            return None
        is_first = seen is None and watch.seen.error is None
        most = max(self._timeout, FIRST_READ) if is_first else self._timeout
        return max(0.0, began + most - time.monotonic())

    @contextmanager
    def _watched(self, changed: Callable[[], None]) -> Generator[Watch]:
        watch = Watch(self._followed, changed)
        hub_of(self._engine, self._models).add(self._engine, watch)
        try:
            yield watch
        finally:
            hub_of(self._engine, self._models).remove(watch)

    def _newest(self, watch: Watch) -> U_co | None:
        if watch.seen.is_gone:
            adds = "enqueued" if self._followed.noun == "job" else "made"
            raise UnknownJob(
                f"there is no {self._followed} in this database: it was deleted, or the transaction that {adds} it "
                "has not committed, so follow it after session.commit()"
            )
        return cast("U_co | None", watch.seen.newest)

    def _late(self, watch: Watch) -> TimeoutError:
        stands = "it has not been read yet" if watch.seen.newest is None else in_words(watch.seen.newest)
        if watch.seen.error is not None:
            stands += f", and the database could not be reached: {reason(watch.seen.error)}"
        return TimeoutError(f"{self._followed} has not ended within {self._timeout:g} s: {stands}")


def follow(
    engine: sa.Engine, models: Models[Any], what: JobMixin | int | BatchMixin, timeout: float | None
) -> Following[Any]:
    """Return the updates of a job or a batch. Raises `ArgumentsError` if `what` has no id."""
    if timeout is not None:
        timeout = check_seconds("timeout", timeout)
    noun: Literal["job", "batch"] = "batch" if isinstance(what, BatchMixin) else "job"
    return Following(engine, models, Followed(noun, _id_of(what)), timeout)


def wait(engine: sa.Engine, models: Models[J], job: JobMixin | int, timeout: float | None) -> J:
    """Return the job once it has succeeded. Raises `JobFailed`, and the errors that `Following` raises."""
    return _ended(engine, models, last_update(follow(engine, models, job, timeout)))


async def wait_async(engine: sa.Engine, models: Models[J], job: JobMixin | int, timeout: float | None) -> J:  # noqa: ASYNC109
    """Do the same as `wait`, in an event loop."""
    last = await last_update_async(follow(engine, models, job, timeout))
    return await asyncio.to_thread(_ended, engine, models, last)


def last_update(following: Following[U_co]) -> U_co:
    """Wait for the end, and return the last update."""
    *_, last = following
    return last


async def last_update_async(following: Following[U_co]) -> U_co:
    """Do the same as `last_update`, in an event loop."""
    return [update async for update in following][-1]


def _id_of(what: JobMixin | int | BatchMixin) -> int:
    if isinstance(what, int):
        return check_id(what)
    if not isinstance(what, JobMixin | BatchMixin):
        raise ArgumentsError(f"a job, its id or a batch is followed, got {what!r:.100}")
    state: InstanceState[Any] = instance_state(what)
    if state.identity is None:  # reading its id would refresh it, on one of its session's connections
        noun = "batch" if isinstance(what, BatchMixin) else "job"
        raise ArgumentsError(
            f"the {noun} is not in the database yet, so it cannot be followed: follow it after session.commit()"
        )
    return int(state.identity[0])


def _ended(engine: sa.Engine, models: Models[J], last: JobUpdate) -> J:
    """Return the job after its last update, with its runs, detached from any session.

    Raises `JobFailed` and `UnknownJob`.
    """
    with Session(engine) as session:
        job = session.get(models.Job, last.job_id, options=[selectinload(models.Job.runs)])
        if job is None:
            raise UnknownJob(f"job {last.job_id} was deleted right after it had {last.state}")
        session.expunge_all()
    if last.state != JobState.succeeded:
        why = f": {last.error_type}: {NOTHING.text(last.error or '')}" if last.error_type else ""
        raise JobFailed(f"job {last.job_id} ({last.task}) {_how_it_ended(last, job)}{why}", job)
    return job


def _how_it_ended(last: JobUpdate, job: JobMixin) -> str:
    if last.state == JobState.failed:
        return f"failed after {plural(last.attempt, 'attempt')}"
    if not job.waits_for:
        return "was cancelled"
    before = f"job {job.waits_for}" if job.waits_for > 0 else "a job before it"
    return f"was cancelled, since {before} did not succeed"
