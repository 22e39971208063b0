"""What people do to jobs, queues and limits: each method works in the caller's session and commits nothing."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Generic, TypeVar

from sqla_jobs.actions import jobs as actions
from sqla_jobs.actions import limits, pausing
from sqla_jobs.actions.limits import UNSAID
from sqla_jobs.database.binding import Bind, Binding
from sqla_jobs.errors import ArgumentsError
from sqla_jobs.models.columns import JobMixin
from sqla_jobs.models.mapping import Models
from sqla_jobs.tasks.registry import Tasks
from sqla_jobs.tasks.sessions import AnySession, plain_session
from sqla_jobs.tasks.task import TaskLike

J = TypeVar("J", bound=JobMixin)


class Operations(Generic[J]):
    """A part of `Jobs`."""

    models: Models[J]
    tasks: Tasks[J]

    if TYPE_CHECKING:

        def binding(self, bind: Bind | None = None) -> Binding: ...

    def cancel(self, session: AnySession, job: J | int, /, *, kill: bool = False) -> bool:
        """Cancel a job once the caller commits: a waiting one ends `cancelled`, a running one is asked to.

        With `kill`, a worker of the command line kills its child process if the job does not stop within
        `--kill-after` seconds. Other jobs that run there lose an attempt.
        Returns False where it had ended already. Raises `UnknownJob`.
        """
        return actions.cancel(plain_session(session, "jobs.cancel(session, job)"), self.models, job, kill=kill)

    def retry(self, session: AnySession, job: J | int, /) -> bool:
        """Queue a job that ended, or waits for its time, at once; it gets at least one attempt more.

        Returns False where it is queued or running. Raises `UnknownJob`, and `JobsError` where another
        live job has its unique key, or its arguments were erased.
        """
        return actions.retry(plain_session(session, "jobs.retry(session, job)"), self.models, job)

    def pause(
        self,
        session: AnySession,
        queue: str | None = None,
        /,
        *,
        task: TaskLike | None = None,
        reason: str | None = None,
        until: datetime | timedelta | None = None,
    ) -> None:
        """Stop all claiming from `queue`, or of `task` in all queues, once the caller commits; what runs goes on.

        `task` is a task, its class, its name or an alias: jobs under all its names wait. `reason` is text for people.
        At `until`, a datetime with a time zone, or that long from now, claiming goes on by itself, by the server's
        clock. A second pause keeps the time of the first, with its own `reason` and `until`.
        Raises `ArgumentsError` unless one of `queue` and `task` is given, and for an `until` that has passed;
        `UnknownTask`.
        """
        if _is_of_task(queue, task):
            own = plain_session(session, "jobs.pause(session, task=…)")
            pausing.pause_task(own, self.models, self.tasks, task, reason=reason, until=until)
        else:
            own = plain_session(session, f"jobs.pause(session, {queue!r:.60})")
            pausing.pause(own, self.models, queue, reason=reason, until=until)

    def resume(self, session: AnySession, queue: str | None = None, /, *, task: TaskLike | None = None) -> None:
        """Claim from `queue`, or jobs of `task`, again once the caller commits. Raises as `pause` does."""
        if _is_of_task(queue, task):
            own = plain_session(session, "jobs.resume(session, task=…)")
            pausing.resume_task(own, self.models, self.tasks, task)
        else:
            own = plain_session(session, f"jobs.resume(session, {queue!r:.60})")
            pausing.resume(own, self.models, queue)

    def set_limit(
        self,
        session: AnySession,
        which: TaskLike | None = None,
        /,
        *,
        queue: str | None = None,
        key: object = UNSAID,
        running: int | None = None,
        rate: int | None = None,
        per: float | timedelta | None = None,
    ) -> None:
        """Override what code declares, from the caller's commit on: `running` at once, `rate` starts in `per`.

        `which` is a task, its name, or the name of a limit that tasks share; `queue` a queue, which takes `running`
        alone. With `key` it is one key's own limit. `running` is from 0 (nothing starts) to 1,000,000, `rate` from 0
        to 10,000, `per` seconds or a timedelta, from 1 s to a day. A task needs to declare no limit for it. What runs
        goes on. Raises `ArgumentsError`.
        """
        target = self._limit(which, queue, key)
        own = plain_session(session, f"jobs.set_limit(session, {_written(queue)}, running=…)")
        limits.set_limit(own, self.models, target, running=running, rate=rate, per=per)

    def clear_limit(
        self,
        session: AnySession,
        which: TaskLike | None = None,
        /,
        *,
        queue: str | None = None,
        key: object = UNSAID,
    ) -> bool:
        """Take back what `set_limit` set, from the caller's commit on: what code declares applies again, or no limit.

        Returns False where nothing was set. The arguments are those of `set_limit`. Raises `ArgumentsError`.
        """
        target = self._limit(which, queue, key)
        own = plain_session(session, f"jobs.clear_limit(session, {_written(queue)})")
        return bool(limits.clear_limit(own, self.models, target))

    def spend(self, which: TaskLike, number: int = 1, /, *, key: object = UNSAID, bind: Bind | None = None) -> bool:
        """Take `number` starts from the rate of a task or of a shared limit, for something that is no job.

        True: they are taken, in a transaction of its own, and count for the next `per` seconds; also where nothing
        limits that rate. False: so many are not free now, and none is taken. Raises `ArgumentsError`.
        """
        return limits.spend(self.binding(bind).engine, self.models, self._limit(which, None, key), number)

    def _limit(self, which: TaskLike | None, queue: str | None, key: object) -> limits.Target:
        if (which is None) == (queue is None):
            raise ArgumentsError("name a task or a limit, or else queue=, and not both")
        return limits.target(self.tasks, which, key) if queue is None else limits.target_of_queue(queue)

    def prune(self, session: AnySession, /, *, older_than: timedelta | float) -> int:
        """Delete the jobs that ended `older_than` (a timedelta, or seconds) ago, and their runs; returns how many.

        All in the caller's transaction. Left alone are jobs that somebody holds locked, and those to which a row
        of the application refers, unless its foreign key says ON DELETE CASCADE or SET NULL. Runs that ended
        `older_than` ago, and whose job the application deleted itself, go too. Workers prune by themselves.
        Raises `ConfigurationError`.
        """
        own = plain_session(session, "jobs.prune(session, older_than=…)")
        return actions.prune(own, self.models, older_than=older_than)


def _written(queue: str | None) -> str:
    return "task" if queue is None else f"queue={queue!r:.60}"


def _is_of_task(queue: str | None, task: TaskLike | None) -> bool:
    if queue is not None and task is not None:
        raise ArgumentsError(f"queue {queue!r:.60} and task={task!r:.60} exclude each other: name one of them")
    if queue is None and task is None:
        raise ArgumentsError("neither a queue nor task= is given: name one of them")
    return task is not None
