"""The parent's lookout, which listens, polls and promotes for all its children."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence

from sqlalchemy import Engine

from sqla_jobs.database.connection_limits import warn_of_few_connections
from sqla_jobs.database.subscribers import BLOCKED, LIMITS, SCHEDULES
from sqla_jobs.queries import Queries
from sqla_jobs.queries.values import Among, Promotion
from sqla_jobs.runtime.listener import Listener
from sqla_jobs.runtime.loop import Loop
from sqla_jobs.runtime.promoter import BUSY, SOON, Promoter
from sqla_jobs.runtime.set_aside import SetAside
from sqla_jobs.runtime.settings import Settings
from sqla_jobs.supervisor.child import ChildProcess
from sqla_jobs.supervisor.database import Database
from sqla_jobs.supervisor.messages import Heard, LookAgain

log: logging.Logger = logging.getLogger("sqla_jobs.worker")

_REST = 20
"""The pause after a poll, in multiples of the poll's duration: while an old snapshot is held, polls are slow."""


class ParentLookout:
    """A thread that polls and promotes, and another that listens. Notifications go to one idle child at a time.

    While no message is lost, no job waits beside an idle child:

    - A child that is told alone answers for the jobs, or sends `PassOn` (`Claimer.heard`). If it answers, it takes all
      of them, or sends `FoundMore` afterwards. After either message, another child is told alone. If none seems idle,
      or the last one passes on, all are told.
    - A child that has stopped claiming passes all messages on, and others are told, since it may have answered just
      before. They are also told when a child hangs or has died.
    - A child that is told with all others, and has a free slot, looks. Otherwise its rest is over, and it looks when a
      slot becomes free.

    No message circles:

    - Each `PassOn` goes to a child with a higher pid, and in the end to all. They do not reply to that.
    - Between two messages `FoundMore` about a queue, a child finds the queue exhausted. So it needs a free slot, and
      there is one only after a job has ended.

    The next poll makes up for lost messages.
    """

    def __init__(self, set_aside: SetAside, *, children: Callable[[], Sequence[ChildProcess]]) -> None:
        self._set_aside = set_aside
        self._children = children
        self._tasks: tuple[str, ...] = ()
        self._turn = 0
        self._queues: Collection[str] = ()
        self._loop: Loop | None = None

    def serve(self, database: Database, tasks: tuple[str, ...], settings: Settings, connections: int) -> None:
        """Look for jobs of these tasks from now on.

        `connections` is the maximum number of connections that all processes of this worker use simultaneously.
        """
        self._tasks, self._queues = tasks, settings.queues
        if self._loop is not None:
            return
        self._engine = engine = database.engine
        self._promoter = _PollingPromoter(engine, database.queries, settings, self._set_aside, tasks)
        self._listener = Listener(engine, database.channel, self.heard, patience=settings.patience)
        self._wanted_connections = connections
        self._loop = Loop("looking for jobs", self.step, name="sqla_jobs-parent-listener")
        self._loop.start()
        self._listener.start()
        log.info("may use up to %d connections to the server at once", connections)

    def stop(self) -> None:
        """Stop looking."""
        if self._loop is not None:
            self._listener.stop()
            self._loop.stop(1.0)

    def expect(self, delay: float) -> None:
        """Expect a job to be due in `delay` seconds."""
        if self._loop is not None and self._promoter.expect(delay):
            self._loop.tell()

    def heard(self, queue: str) -> None:
        """Notify children of new jobs in `queue`; "" means any queue."""
        if queue in (SCHEDULES, BLOCKED):
            for child in self._children():
                child.hint(Heard(queue))
            return
        if queue.removesuffix(LIMITS) not in ("", *self._queues):
            return
        idle = self._idle()
        self._tell(queue, idle)
        if queue != LIMITS:  # one of the jobs may have a delay
            self.expect(SOON if idle else BUSY)

    def found_more(self, queue: str, sender: ChildProcess) -> None:
        """Notify another idle child, or all other children if none seems idle."""
        self._tell(queue, [child for child in self._idle() if child is not sender], sender)

    def pass_on(self, queue: str, sender: ChildProcess) -> None:
        """Notify the next idle child in the order of pids, or all other children after the last one."""
        later = [child for child in self._idle() if child.pid > sender.pid]
        self._tell(queue, sorted(later, key=lambda child: child.pid), sender)

    def _tell(self, queue: str, idle: Sequence[ChildProcess], sender: ChildProcess | None = None) -> None:
        if idle:
            idle[0].hint(Heard(queue, is_alone=True))
            return
        for child in self._children():  # a child shows a free slot up to half a second late
            if child is not sender:
                child.hint(Heard(queue))

    def _idle(self) -> list[ChildProcess]:
        """Return the children with a free slot. Each call begins the list with the next child."""
        idle = [child for child in self._children() if child.started.has_free_slot]
        self._turn += 1
        first = self._turn % len(idle) if idle else 0
        return idle[first:] + idle[:first]

    def step(self) -> float:
        """Promote the jobs that are due, poll if that is due, and notify children of what was found."""
        now, promoter = time.monotonic(), self._promoter
        if self._wanted_connections:
            warn_of_few_connections(self._engine, self._wanted_connections)
            self._wanted_connections = 0
        if now < promoter.at:
            return promoter.at
        promoter.tasks = self._tasks
        found, is_news = promoter.promote(now)
        for child in self._children():
            child.started.workers = found.workers
            had_limits, child.started.has_limits = child.started.has_limits, found.has_limits
            if found.has_limits and not had_limits:
                child.hint(Heard(LIMITS))
        if promoter.has_polled and found.has_blocked:
            self.heard(BLOCKED)
        idle = self._idle()
        if is_news:
            self.heard("")
        if idle and found.is_more:
            idle[0].hint(LookAgain())
        elif idle and promoter.rests(now):
            idle[0].hint(Heard("", is_alone=True))
        return promoter.at


class _PollingPromoter(Promoter):
    """A promoter whose polls also check whether any job is queued."""

    def __init__(
        self, engine: Engine, queries: Queries, settings: Settings, set_aside: SetAside, tasks: Sequence[str]
    ) -> None:
        super().__init__(engine, queries, settings, set_aside, tasks=tasks)
        self.poll_at = 0.0
        self._is_poll = False

    @property
    def has_polled(self) -> bool:
        """True if the last promotion was a poll."""
        return self._is_poll

    def rests(self, now: float) -> bool:
        """Return whether the next poll is far off because the last one took a long time.

        A child should look for jobs in the meantime.
        """
        return self.poll_at > now + 2 * self._settings.poll

    def _poll_after(self, now: float) -> float:
        self._after = super()._poll_after(now)
        self._is_poll = now >= self.poll_at
        return self._after if self._is_poll else min(self.poll_at, self._after)

    def _promote_among(self, which: Among) -> Promotion:
        if not self._is_poll:
            return super()._promote_among(which)
        began = time.monotonic()
        with self._engine.begin() as connection:
            found = self._queries.poll(connection, [*self._settings.queues], self.tasks, which)
        ended = time.monotonic()
        self.poll_at = max(self._after, ended + _REST * (ended - began))
        return found
