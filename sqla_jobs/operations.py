"""`Operations`: what `Jobs` changes in the transactions of its callers: jobs, signals, pauses and limits."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar

from sqla_jobs.actions import batches, limits, pausing, signals
from sqla_jobs.actions.audit import Changing
from sqla_jobs.actions.bulk_change import Change, Changed
from sqla_jobs.actions.jobs import Alter, Cancel, Delete, Erase, Retry
from sqla_jobs.actions.limits import UNSET
from sqla_jobs.actions.selection import Selection
from sqla_jobs.binds import Bound
from sqla_jobs.database.binding import Bind
from sqla_jobs.errors import ArgumentsError
from sqla_jobs.models.columns import JobMixin
from sqla_jobs.models.mapping import Models
from sqla_jobs.models.workflow_columns import BatchMixin
from sqla_jobs.rules.value_checks import check_seconds
from sqla_jobs.tasks.registry import Tasks
from sqla_jobs.tasks.sessions import AnySession, plain_session, session_at
from sqla_jobs.tasks.task import TaskLike

J = TypeVar("J", bound=JobMixin)


class Operations(Bound, Generic[J]):
    """The changes to jobs, queues and limits, as methods of `Jobs`."""

    _models: Models[J]
    tasks: Tasks[J]

    def select(
        self,
        *,
        states: Sequence[str] | None = None,
        tasks: Sequence[str] | None = None,
        queues: Sequence[str] | None = None,
        batch: BatchMixin | int | None = None,
        args: Mapping[str, Any] | None = None,
        results: Mapping[str, Any] | None = None,
        error: str | None = None,
        text: str | None = None,
        created_before: datetime | timedelta | None = None,
        created_after: datetime | timedelta | None = None,
        ended_before: datetime | timedelta | None = None,
        ended_after: datetime | timedelta | None = None,
    ) -> Selection:
        """Return a selection of all jobs that match everything that is given, for `where=` of the changes below.

        - `states`, `tasks`, `queues`: names, of which a job has to match one.
        - `batch`: a batch that the database has, or its id.
        - `args`, `results`: stored values by name, at any depth of the arguments or of a run's result.
        - `error`: a part of the last run's error, in any case.
        - `text`: a part of the arguments, headers, unique key or progress, or of a run's result or error.
        - `created_before`, `created_after`, `ended_before`, `ended_after`: a datetime, or a timedelta before now.

        Raises `ArgumentsError` for a value that no job can have, and for an empty one.
        """
        batch_id = batch if isinstance(batch, int) or batch is None else batches.saved_id(batch)
        named = {"states": states, "tasks": tasks, "queues": queues}
        for name, given in named.items():
            if isinstance(given, str):
                raise ArgumentsError(f"{name} must be a list, such as [{given!r:.60}], got {given!r:.60}")
        for name, value in (named | {"args": args, "results": results}).items():
            if value is not None and not value:
                raise ArgumentsError(f"{name}={value!r} names nothing: leave {name}= out if it does not matter")
        return Selection(
            states=tuple(states or ()),
            tasks=tuple(tasks or ()),
            queues=tuple(queues or ()),
            batches=() if batch_id is None else (batch_id,),
            args=args or {},
            results=results or {},
            error=error,
            text=text,
            created_before=created_before,
            created_after=created_after,
            ended_before=ended_before,
            ended_after=ended_after,
        )

    def cancel(
        self,
        session: AnySession,
        job: J | int | BatchMixin | None = None,
        /,
        *,
        where: Selection | None = None,
        kill: bool = False,
    ) -> Changed:
        """Cancel jobs once the caller commits: a waiting job ends as `cancelled`; a running job is asked to stop.

        - `job`: a job, or its id; or a batch, which means its live jobs. A number is always taken as the id of a job.
        - `where`: instead of `job`, a selection by `jobs.select(…)`. Jobs that somebody holds are left alone.
        - `kill`: True makes a command-line worker kill its child process if the job does not stop within `--kill-after`
          seconds. Other jobs running in that process lose an attempt.

        Returns a `Changed`, which is false if no job was live.

        Raises `UnknownJob` if there is no such job.
        """
        return self._change(session, "cancel", Cancel(kill=kill), job, where)

    def retry(
        self,
        session: AnySession,
        job: J | int | BatchMixin | None = None,
        /,
        *,
        where: Selection | None = None,
        over: timedelta | float | None = None,
    ) -> Changed:
        """Once the caller commits, queue jobs that have ended, or that wait for their time or for other jobs.

        Each gets at least one more attempt. If it had ended, it waits again for the live jobs that it was enqueued
        after. If other jobs were cancelled because it had failed, they wait for it again.

        - `job`: a job, or its id; or a batch, which means its jobs that failed or that somebody cancelled. A number is
          always taken as the id of a job.
        - `where`: instead of `job`, a selection by `jobs.select(…)`. Without states, it means failed and cancelled
          jobs. Jobs that somebody holds are left alone.
        - `over`: a timedelta or seconds, over which the jobs become due, evenly, the oldest first.

        Returns a `Changed`. Left alone are a job that is queued or running, one whose unique key another live job has,
        and one whose arguments were erased.

        Raises `UnknownJob` if there is no such job, and `ArgumentsError` for an `over` that is no time.
        """
        return self._change(session, "retry", Retry(over), job, where)

    def move(
        self,
        session: AnySession,
        job: J | int | BatchMixin | None = None,
        /,
        *,
        where: Selection | None = None,
        queue: str | None = None,
        priority: int | None = None,
    ) -> Changed:
        """Once the caller commits, move waiting jobs to the end of another queue, or of another priority.

        - `job`, `where`: as for `cancel`.
        - `queue`, `priority`: what is given changes. Priorities are from -10 to 10; lower runs first.

        Returns a `Changed`. Only jobs that are scheduled or queued are moved.

        Raises `UnknownJob` if there is no such job, and `ArgumentsError` for a wrong queue or priority.
        """
        return self._change(session, "move", Alter(queue, priority), job, where)

    def reschedule(
        self,
        session: AnySession,
        job: J | int | BatchMixin | None = None,
        /,
        *,
        where: Selection | None = None,
        delay: timedelta | float | None = None,
        run_at: datetime | None = None,
    ) -> Changed:
        """Once the caller commits, let waiting jobs wait until another time.

        - `job`, `where`: as for `cancel`.
        - `delay`: a timedelta or seconds from now.
        - `run_at`: instead of `delay`, a datetime with a time zone, or `PARKED`.

        Returns a `Changed`. Only jobs that are scheduled or queued are rescheduled.

        Raises `UnknownJob` if there is no such job, and `ArgumentsError` for a wrong time.
        """
        if (delay is None) == (run_at is None):
            raise ArgumentsError("jobs.reschedule takes either delay= or run_at=: give one of them")
        when = run_at if delay is None else timedelta(seconds=check_seconds("delay", delay))
        return self._change(session, "reschedule", Alter(run_at=when), job, where)

    def delete(
        self, session: AnySession, job: J | int | BatchMixin | None = None, /, *, where: Selection | None = None
    ) -> Changed:
        """Delete jobs that are not running, with their runs, once the caller commits.

        - `job`, `where`: as for `cancel`. `where=jobs.select(ended_before=timedelta(days=30))` prunes: it leaves alone
          what a younger job of the same graph may need.

        Returns a `Changed`. Left alone are running jobs, and jobs to which application rows refer, unless the foreign
        key of those rows is ON DELETE CASCADE or SET NULL. Workers prune automatically.

        Raises `UnknownJob` if there is no such job.
        """
        return self._change(session, "delete", Delete(), job, where)

    def erase(
        self, session: AnySession, job: J | int | BatchMixin | None = None, /, *, where: Selection | None = None
    ) -> Changed:
        """Erase the arguments, results and errors of ended jobs once the caller commits. The rows stay.

        - `job`, `where`: as for `cancel`. `where=jobs.select(args={"customer": 17})` means one customer's jobs.

        Returns a `Changed`. Its `left` has the jobs that have not ended: erase them later, or cancel them first.

        Raises `UnknownJob` if there is no such job.
        """
        return self._change(session, "erase", Erase(), job, where)

    def _change(
        self, session: AnySession, name: str, change: Change, job: J | int | BatchMixin | None, where: Selection | None
    ) -> Changed:
        if (job is None) == (where is None):
            raise ArgumentsError(f"jobs.{name} takes either a job, its id or a batch, or where=jobs.select(…)")
        with self._changing_at(session, f"jobs.{name}(session, …)", job) as it:
            if isinstance(job, BatchMixin):
                batch_id = batches.id_of(it.session, self._models, job)
                return change.all(it, Selection(batches=(batch_id,)), waits=True)
            return change.one(it, job) if job is not None else change.all(it, where or Selection())

    def signal(self, session: AnySession, job: J | int, name: str, payload: object = None, /) -> bool:
        """Send a signal to a job, as part of the session's transaction. The job receives it with `run.wait_for`.

        If the job is waiting for the signal, it is queued, and the workers are notified once the transaction commits.
        Otherwise, the signal is kept until a run of the job asks for it. Several signals with one name are received one
        by one, in the order of their commits. To ensure this order, the transaction locks the job's row from now on.

        - `job`: a job or its id.
        - `name`: the signal's name, 1 to 200 characters.
        - `payload`: any value that pydantic can write as JSON, 1 MiB at most. `run.wait_for` reads it as a given type.

        Returns False for a job that has ended: it receives nothing.

        Raises `UnknownJob` if there is no such job, and `ArgumentsError` for a name or payload that cannot be stored.
        """
        with self._changing_at(session, "jobs.signal(session, job, name, payload)", job) as it:
            return signals.send(it, job, name, payload)

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
        """Stop all claims from a queue, or of a task in all queues, once the caller commits. Running jobs continue.

        - `queue`: the name of a queue.
        - `task`: instead of a queue, a task, its name or an alias. The pause applies to jobs under all of its names.
        - `reason`: human-readable text.
        - `until`: the time, by the server's clock, at which the pause ends by itself: a datetime with a time zone, or a
          timedelta from now. By default, the pause lasts until `resume` is called.

        A second pause keeps the first one's start time, and sets its own `reason` and `until`.

        Raises `ArgumentsError` unless exactly one of `queue` and `task` is given, and for an `until` in the past;
        `UnknownTask` for a name that no task has.
        """
        it = self._changing(session, "jobs.pause(session, …)")
        pausing.pause(it, queue, task=task, reason=reason, until=until)

    def resume(self, session: AnySession, queue: str | None = None, /, *, task: TaskLike | None = None) -> None:
        """Resume claims from a paused queue, or of a paused task, once the caller commits.

        - `queue`, `task`: as for `pause`.

        Raises the same errors as `pause`.
        """
        it = self._changing(session, "jobs.resume(session, …)")
        pausing.resume(it, queue, task=task)

    def set_limit(
        self,
        session: AnySession,
        which: TaskLike | None = None,
        /,
        *,
        queue: str | None = None,
        key: object = UNSET,
        running: int | None = None,
        rate: int | None = None,
        per: float | timedelta | None = None,
    ) -> None:
        """Override a declared limit, or set an undeclared one, once the caller commits.

        - `which`: a task, its name, or the name of a limit that tasks share.
        - `queue`: instead of `which`, the name of a queue. A queue can have only a `running` limit.
        - `key`: the only key to which the limit applies; by default, it applies to each key.
        - `running`: the number of simultaneous jobs, from 0 (no job starts) to 1,000,000.
        - `rate`: the number of starts that are allowed within `per`, from 0 to 10,000.
        - `per`: seconds or a timedelta, from 1 s to a day.

        Running jobs continue.

        Raises `ArgumentsError` for an invalid number, and for a target that does not exist.
        """
        target = limits.target(self.tasks, which, queue=queue, key=key)
        it = self._changing(session, "jobs.set_limit(session, …)")
        limits.set_limit(it, target, running=running, rate=rate, per=per)

    def clear_limit(
        self,
        session: AnySession,
        which: TaskLike | None = None,
        /,
        *,
        queue: str | None = None,
        key: object = UNSET,
    ) -> bool:
        """Undo `set_limit` once the caller commits: the declared limit applies again, or no limit if none is declared.

        - `which`, `queue`, `key`: as for `set_limit`.

        Returns False if no limit was set.

        Raises `ArgumentsError` for a target that does not exist.
        """
        target = limits.target(self.tasks, which, queue=queue, key=key)
        it = self._changing(session, "jobs.clear_limit(session, …)")
        return bool(limits.clear_limit(it, target))

    def spend(self, which: TaskLike, number: int = 1, /, *, key: object = UNSET, bind: Bind | None = None) -> bool:
        """Take `number` starts from the rate of a task or a shared limit, for work that is not a job.

        - `which`: a task, its name, or the name of a limit that tasks share.
        - `number`: the number of starts, from 1 to 10,000.
        - `key`: the key from whose rate the starts are taken, if each key has its own rate.
        - `bind`: the database; by default the one set with `bind`.

        Returns True if the starts were taken. They are taken in a separate transaction, and count for the next `per`
        seconds. Returns True, too, if no limit applies to the rate. If fewer than `number` starts are free now, none is
        taken, and False is returned.

        Raises `ArgumentsError` for an invalid number or target.
        """
        return limits.spend(self._binding(bind).engine, self._models, limits.target(self.tasks, which, key=key), number)

    def _changing(self, session: AnySession, said: str) -> Changing:
        return Changing(plain_session(session, said), self._models, self.tasks)

    @contextmanager
    def _changing_at(self, session: AnySession, said: str, row: object) -> Generator[Changing]:
        with session_at(session, said, row) as own:
            yield Changing(own, self._models, self.tasks)
