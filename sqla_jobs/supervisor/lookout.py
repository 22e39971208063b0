"""The parent's lookout, which listens, polls and promotes for all its children."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Sequence

from sqla_jobs.database.connection_limits import warn_of_few_connections
from sqla_jobs.database.subscribers import BLOCKED, LIMITS, SCHEDULES
from sqla_jobs.queries.values import Among, Promotion
from sqla_jobs.runtime.listener import Listener
from sqla_jobs.runtime.loop import Loop
from sqla_jobs.runtime.promoter import BUSY, SOON, Promoter, poll_in
from sqla_jobs.runtime.set_aside import SetAside
from sqla_jobs.runtime.settings import Settings
from sqla_jobs.supervisor.child import ChildProcess
from sqla_jobs.supervisor.database import Database
from sqla_jobs.supervisor.messages import Expecting, FoundMore, Heard, LookAgain, PassOn

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

    def __init__(
        self,
        database: Database,
        settings: Settings,
        set_aside: SetAside,
        *,
        tasks: Sequence[str],
        connections: int,
        children: Callable[[], Sequence[ChildProcess]],
    ) -> None:
        """Prepare to look for jobs.

        `connections` is the maximum number of connections that all processes of this worker use simultaneously.
        """
        self._database = database
        self._settings = settings
        self._connections = connections
        self._children = children
        self._turns = itertools.count(1)
        self._poll_at = 0.0
        """The earliest time of the next poll."""
        self._promoter = Promoter(database.engine, database.queries, settings, set_aside, tasks=tasks)
        self._listener = Listener(database.engine, database.channel, self.heard, patience=settings.patience)
        self._loop = Loop("looking for jobs", self.step, name="sqla_jobs-parent-listener", server=database.engine)

    def start(self) -> None:
        self._loop.start()
        self._listener.start()
        log.info("may use up to %d connections to the server at once", self._connections)

    def stop(self) -> None:
        self._listener.stop()
        self._loop.stop(1.0)

    def serve(self, tasks: Sequence[str]) -> None:
        """Look for jobs of these tasks from now on."""
        self._promoter.tasks = tasks

    def _expect(self, delay: float) -> None:
        """Expect a job to be due in `delay` seconds."""
        if self._promoter.expect(delay):
            self._loop.tell()

    def heard(self, queue: str) -> None:
        """Notify children of new jobs in `queue`; "" means any queue."""
        if queue in (SCHEDULES, BLOCKED):
            for child in self._children():
                child.hint(Heard(queue))
            return
        if queue.removesuffix(LIMITS) not in ("", *self._settings.queues):
            return
        idle = self._idle()
        self._tell(queue, idle)
        if queue != LIMITS:  # one of the jobs may have a delay
            self._expect(SOON if idle else BUSY)

    def hear(self, message: Expecting | FoundMore | PassOn, sender: ChildProcess) -> None:
        """Expect a job, or notify another idle child. If none seems idle, or all have passed on, notify all others."""
        match message:
            case Expecting(delay):
                self._expect(delay)
            case FoundMore(queue):
                self._tell(queue, [child for child in self._idle() if child is not sender], sender)
            case PassOn(queue):  # in the order of pids
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
        first = next(self._turns) % len(idle) if idle else 0
        return idle[first:] + idle[:first]

    def step(self) -> float:
        """Promote the jobs that are due, poll if that is due, and notify children of what was found."""
        now, promoter = time.monotonic(), self._promoter
        if not self._poll_at:
            warn_of_few_connections(self._database.engine, self._connections)
        if now < promoter.at:
            return promoter.at
        is_poll, after = now >= self._poll_at, now + poll_in(self._settings)
        if is_poll:
            found, is_news = promoter.promote(now, again_at=after, poll=self._poll)
            ended = time.monotonic()
            self._poll_at = max(after, ended + _REST * (ended - now))
        else:
            found, is_news = promoter.promote(now, again_at=min(self._poll_at, after))
        for child in self._children():
            child.started.workers = found.workers
            had_limits, child.started.has_limits = child.started.has_limits, found.has_limits
            if found.has_limits and not had_limits:
                child.hint(Heard(LIMITS))
        if is_poll and found.has_blocked:
            self.heard(BLOCKED)
        idle = self._idle()
        if is_news:
            self.heard("")
        if idle and found.is_more:
            idle[0].hint(LookAgain())
        elif idle and self._poll_at > now + 2 * self._settings.poll:  # it rests after a slow poll
            idle[0].hint(Heard("", is_alone=True))
        return promoter.at

    def _poll(self, which: Among) -> Promotion:
        with self._database.engine.begin() as connection:
            queues, tasks = [*self._settings.queues], self._promoter.tasks
            return self._database.queries.poll(connection, queues, tasks, which)
