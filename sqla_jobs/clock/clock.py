"""The clock, which turns schedules into jobs."""

from __future__ import annotations

import logging
import time
import uuid
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session

from sqla_jobs.clock.firing import BATCH, Made, fire_due
from sqla_jobs.clock.sync import UNDECLARED_FOR, retire, still_declared, sync
from sqla_jobs.database.binding import Binding, Context
from sqla_jobs.database.engines import check_writable, close_engine, own_engine
from sqla_jobs.database.notify import notify
from sqla_jobs.database.outages import reached
from sqla_jobs.database.refusals import reason
from sqla_jobs.database.shard_name import working_in
from sqla_jobs.database.subscribers import SCHEDULES
from sqla_jobs.errors import ConfigurationError
from sqla_jobs.models.citus import check_unmanaged
from sqla_jobs.models.mapping import Models
from sqla_jobs.models.version import check_version
from sqla_jobs.queries import Among, Queries, processes
from sqla_jobs.queries.schedules import ScheduleQueries
from sqla_jobs.rules.wording import plural
from sqla_jobs.runtime.listener import Listener, Subscription
from sqla_jobs.runtime.loop import Loop
from sqla_jobs.runtime.service import Service
from sqla_jobs.runtime.set_aside import SetAside
from sqla_jobs.runtime.settings import LeaseSettings
from sqla_jobs.runtime.stopping import StopRequest
from sqla_jobs.runtime.vitals import Vitals

if TYPE_CHECKING:
    from sqla_jobs.jobs import Jobs

log: logging.Logger = logging.getLogger("sqla_jobs.clock")

_LOOK = 2.0
"""Seconds between two looks at the schedules: another session may change a schedule without a notification."""
_HELD_AGAIN = 0.25
"""Seconds between two attempts to fire a due schedule that another session has locked."""
_DECLARE_AGAIN = 3600.0
"""Seconds after which the clock confirms again that its code declares its schedules."""
_LOCK_TIMEOUT, _LOCKED = "500ms", "55P03"
"""The time that the clock waits for a locked row, and the SQLSTATE of that timeout."""
_LOCKED_AGAIN = 5.0


class Clock(Service):
    """A service that enqueues a job for each tick of each schedule in one database.

    Any number of clocks may run, in any number of processes.

    `run()` blocks until SIGTERM or SIGINT. `start()` and `stop()`, or `with`, run the clock inside another program.
    `tick()` enqueues the jobs that are due now, and returns. Each of these methods first stores the schedules that code
    declares.
    """

    def __init__(
        self,
        jobs: Jobs[Any],
        binding: Binding,
        *,
        heartbeat: float,
        lease: float,
        listener: type[Listener | Subscription] = Listener,
    ) -> None:
        super().__init__(StopRequest())
        self._listener_of = listener
        self._connections = 1 + listener.connections
        self._jobs = jobs
        self._binding = binding
        self._lease_settings = LeaseSettings(heartbeat, lease)
        self._rounds = _Rounds(jobs, binding.context)
        self._at_work: _AtWork | None = None

    @classmethod
    def beside_worker(cls, jobs: Jobs[Any], binding: Binding, settings: LeaseSettings) -> Clock:
        """Return the clock of a worker, which sees a schedule that another process changes within two seconds."""
        return cls(jobs, binding, heartbeat=settings.heartbeat, lease=settings.lease, listener=Subscription)

    def start(self) -> None:
        """Start the clock in a thread. While no host of the database accepts writes, try again for a minute.

        Raises `ConfigurationError` and database errors.
        """
        if self._at_work is not None:
            raise ConfigurationError("this clock was started before: make a new one with jobs.clock()")
        self._jobs.tasks.load()
        working_in(self._jobs._shard_name, self._start)

    def _start(self) -> None:
        models, settings = self._jobs._models, self._lease_settings
        engine = reached(self._connect, self._stop_requested)
        at_work = _AtWork(models, self._rounds, settings, engine, self._connections, self._listener_of)
        try:
            at_work.start()
        except BaseException:
            at_work.close()
            raise
        self._at_work = at_work
        log.info(
            "clock %s runs, with %s in its code", at_work.process_id, plural(len(self._jobs.schedules), "schedule")
        )

    def stop(self) -> None:
        """Stop the clock. A tick in progress is finished first."""
        self._stop_requested.set()
        if self._at_work is not None:
            working_in(self._jobs._shard_name, self._at_work.stop)

    def tick(self) -> int:
        """Enqueue the jobs that are due now. Return the number of jobs."""
        self._jobs.tasks.load()
        engine = self._connect()
        try:
            self._rounds.declare(engine)
            return self._rounds.fire(engine)
        finally:
            engine.dispose()

    def _connect(self) -> sa.Engine:
        engine = own_engine(
            self._binding.engine,
            patience=self._lease_settings.patience,
            most=self._connections,
            name="sqla-jobs clock",
        )
        try:
            with engine.connect() as connection:
                check_unmanaged(connection, self._jobs._models)
                check_version(connection, self._jobs._models.tables["jobs"])
                check_writable(connection)
        except BaseException:
            engine.dispose()
            raise
        return engine


class _Declared(NamedTuple):
    """Whether the declared schedules are stored, and when to store or confirm them again, by `time.monotonic()`."""

    is_stored: bool
    again_at: float


class _Rounds:
    """What a clock does in each round."""

    def __init__(self, jobs: Jobs[Any], context: Context) -> None:
        self._jobs = jobs
        self._context = context
        self._schedules = ScheduleQueries(jobs._models)
        self.set_aside: SetAside = SetAside("schedule")
        self._declared = _Declared(is_stored=False, again_at=0.0)

    def fire(self, engine: sa.Engine) -> int:
        """Enqueue the jobs that are due. Return the number of jobs."""

        def fire(which: Among) -> tuple[list[Made], bool]:
            with _read_committed(engine).begin() as connection:
                return fire_due(connection, self._schedules, self._jobs.tasks, which)

        def candidates(which: Among) -> list[int]:
            with _read_committed(engine).begin() as connection:
                return [row.id for row in self._schedules.due(connection, which, limit=BATCH)]

        count, is_more = 0, True
        while is_more:
            fired = self.set_aside.around("a tick of it", fire, candidates)
            messages = {job.message for of_part, _ in fired for job in of_part}
            is_more = any(is_full for _, is_full in fired)
            if messages:  # notify after the commit, since NOTIFY in a transaction makes commits wait for one another
                with engine.begin() as connection:
                    notify(connection, self._jobs._models.channel, messages)
            for of_part, _ in fired:
                count += len(of_part)
                self._tell_handlers(of_part)
        return count

    def _tell_handlers(self, made: Iterable[Made]) -> None:
        hooks = self._jobs._hooks
        if hooks.tells_of_enqueued():
            with self._context(None):
                for where, number in Counter((job.task, job.queue) for job in made).items():
                    hooks.tell_enqueued(where, number)

    def due_in(self, engine: sa.Engine) -> float:
        """Return the seconds until a schedule is due."""
        with engine.begin() as connection:
            return self._schedules.due_in(connection, Among(set_aside=self.set_aside.reasons))

    def declare(self, engine: sa.Engine) -> None:
        """Store the declared schedules on the first call, and confirm them on later calls.

        Disable schedules that no process has declared for a day. Wait only briefly for rows that another session has
        locked, so that due schedules fire in the meantime.
        """
        if time.monotonic() < self._declared.again_at:
            return
        try:
            with Session(_read_committed(engine)) as session, session.begin():
                self._declare_in(session)
        except OperationalError as error:
            if getattr(error.orig, "sqlstate", None) != _LOCKED:
                raise
            log.warning(
                "what code declares is not stored yet, since somebody holds schedules locked: tried again in %g s",
                _LOCKED_AGAIN,
            )
            self._declared = self._declared._replace(again_at=time.monotonic() + _LOCKED_AGAIN)
        else:
            self._declared = _Declared(is_stored=True, again_at=time.monotonic() + _DECLARE_AGAIN)

    def _declare_in(self, session: Session) -> None:
        session.execute(sa.select(sa.func.set_config("lock_timeout", _LOCK_TIMEOUT, True)))
        store = still_declared if self._declared.is_stored else sync
        store(session, self._jobs._models, self._jobs.schedules)
        for name in retire(session, self._jobs._models, self._jobs.schedules, UNDECLARED_FOR):
            log.warning("schedule %r is disabled: no process has declared it for a day", name)


class _Registered(NamedTuple):
    """A clock's row, and when its next heartbeat is due, by `time.monotonic()`."""

    process_id: uuid.UUID
    beat_at: float


class _AtWork:
    """A clock at work, with its connections, its row and its threads."""

    def __init__(
        self,
        models: Models[Any],
        rounds: _Rounds,
        settings: LeaseSettings,
        engine: sa.Engine,
        connections: int,
        listener: type[Listener | Subscription],
    ) -> None:
        self._models = models
        self._rounds = rounds
        self._settings = settings
        self._engine = engine
        self._connections = connections
        self._queries = Queries(models)
        self._vitals = Vitals(engine, models)
        self._listener = listener(engine, models.channel, self._heard, patience=settings.patience)
        self.loop: Loop = Loop("the clock", self._step, name="sqla_jobs-clock", longest=settings.longest_wait)

    @property
    def process_id(self) -> uuid.UUID:
        """The id of the row under which this process is currently registered."""
        return self._registered.process_id

    def start(self) -> None:
        """Store the declared schedules, register the clock, and start its threads. Raises database errors."""
        self._rounds.declare(self._engine)
        self._registered = self._register()
        try:
            self._listener.start()
            self.loop.start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop after the round in progress, and delete the process's row. Later calls do nothing."""
        if self.loop.stopping.is_set():
            return
        self._listener.stop()
        self.loop.stop(2 * self._settings.patience)
        try:
            with self._engine.begin() as connection:
                processes.unregister(connection, self._models, self.process_id)
        except DBAPIError as error:
            log.warning("could not sign off, the lease will run out by itself: %s", reason(error))
        self.close()

    def close(self) -> None:
        """Close the connections."""
        close_engine(self._engine)

    def _register(self) -> _Registered:
        with self._engine.begin() as connection:
            process_id = processes.register(
                connection,
                self._models,
                kind="clock",
                queues={},
                connections=self._connections,
                lease=self._settings.lease,
            )
        return _Registered(process_id, time.monotonic() + self._settings.heartbeat)

    def _beat(self) -> None:
        """Write this clock's heartbeat. A clock does not rescue jobs: a job's locked row could delay a tick."""
        beaten = _Registered(self.process_id, time.monotonic() + self._settings.heartbeat)
        with self._engine.begin() as connection:
            alive = self._queries.beat(connection, [self.process_id])
        self._registered = beaten if self.process_id in alive else self._register()
        self._vitals.show(self.process_id)

    def _heard(self, what: str) -> None:
        if what in ("", SCHEDULES):
            self.loop.tell()

    def _step(self) -> float:
        """Enqueue the jobs that are due, and send a heartbeat if it is due. Return when to look again."""
        rounds, engine = self._rounds, self._engine
        rounds.declare(engine)
        if time.monotonic() >= self._registered.beat_at:
            self._beat()
        if (due_in := rounds.due_in(engine)) <= 0:
            if count := rounds.fire(engine):
                log.info("%s enqueued by schedules", plural(count, "job"))
            due_in = rounds.due_in(engine)
        rounds.set_aside.show(engine, self._queries, self.process_id)
        now = time.monotonic()
        return min(now + _LOOK, self._registered.beat_at, now + due_in) if due_in > 0 else now + _HELD_AGAIN


def _read_committed(engine: sa.Engine) -> sa.Engine:
    """Return the engine with isolation level READ COMMITTED, for transactions of several statements."""
    return engine.execution_options(isolation_level="READ COMMITTED")
