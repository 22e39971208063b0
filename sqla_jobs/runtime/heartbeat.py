"""Heartbeats, which show that a process is alive, and the rescue of jobs whose process is dead."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Collection, Iterable

import sqlalchemy as sa

from sqla_jobs.execution.run_lines import log_rescued
from sqla_jobs.queries import Queries
from sqla_jobs.queries.values import Among, Rescued
from sqla_jobs.rules.dead_processes import Sightings
from sqla_jobs.runtime.counters import Origin
from sqla_jobs.runtime.set_aside import SetAside
from sqla_jobs.runtime.settings import LeaseSettings

log: logging.Logger = logging.getLogger("sqla_jobs.worker")

_REST = 50
"""The pause after a search for dead processes' jobs, as a multiple of the search's duration."""


def next_look(began: float, ended: float, *, longest: float) -> float:
    """Return when to search the running jobs again: soon after a quick search, and in `longest` seconds at most.

    While an old snapshot is held, searches are slow: the index of running jobs then keeps an entry for each job that
    has run.
    """
    return ended + min(_REST * (ended - began), longest)


class Heartbeat:
    """Sends heartbeats for the processes that `living` returns, and rescues the jobs of dead ones.

    Another process is dead if its heartbeat has not changed for a whole lease. During this lease, this process must
    have sent its own heartbeats without a gap: otherwise all processes would look dead after a server outage.
    """

    def __init__(
        self,
        engine: sa.Engine,
        queries: Queries,
        settings: LeaseSettings,
        set_aside: SetAside,
        *,
        living: Callable[[], Collection[uuid.UUID]],
        beaten: Callable[[set[uuid.UUID], float], None],
        gone: Callable[[uuid.UUID], None],
        lost: Callable[[Iterable[Origin]], None],
    ) -> None:
        """Prepare to send heartbeats.

        `beaten` is called with the processes whose heartbeat was stored, and with the time.

        `gone` is called with each process whose row is missing: another process considered it dead. `lost` is called
        with the tasks and queues of the rescued jobs.
        """
        self._engine: sa.Engine = engine
        self._queries: Queries = queries
        self._lease_settings = settings
        self._set_aside = set_aside
        self._living = living
        self._beaten = beaten
        self._gone = gone
        self._lost = lost
        self._sightings = Sightings()
        self._beat_at = time.monotonic()
        self._rescue_at = 0.0
        self._has_looked = True

    @property
    def due_in(self) -> float:
        """Seconds until the next heartbeat is due."""
        return max(0.0, self._beat_at + self._lease_settings.heartbeat - time.monotonic())

    def beat_if_due(self) -> None:
        """Write the heartbeats if they are due. Call this between the steps of any operation that may take long."""
        if self.due_in > 0:
            return
        now, living = time.monotonic(), self._living()
        with self._engine.begin() as connection:
            alive = self._queries.beat(connection, living)
        if self._has_gap:
            self._sightings.forget()
        self._beat_at = now
        self._has_looked = False
        self._beaten({process_id for process_id, is_stored in alive.items() if is_stored}, now)
        for process_id in living:
            if process_id not in alive:
                self._gone(process_id)

    def rescue_if_due(self) -> None:
        """Rescue dead processes' jobs: once after each heartbeat, and as soon as a silent process may be dead."""
        if self._has_looked and time.monotonic() < self._sightings.due_at:
            return
        self._has_looked = True
        self._delete_expired()
        if time.monotonic() >= self._rescue_at:
            while self._rescue_some() and self.due_in > 0:
                pass

    @property
    def _has_gap(self) -> bool:
        """True if this process has sent no heartbeat for so long that the silence of others proves nothing."""
        return time.monotonic() - self._beat_at > self._lease_settings.lease / 2

    def _delete_expired(self) -> None:
        asked_at = time.monotonic()
        with self._engine.begin() as connection:
            heartbeats = self._queries.heartbeats(connection)
        silent = self._sightings.silent(heartbeats, asked_at=asked_at, answered_at=time.monotonic())
        if self._has_gap:
            self._sightings.forget()
        elif silent:
            with self._engine.begin() as connection:
                buried = self._queries.delete_expired(connection, silent)
            for process_id in buried:
                log.warning("process %s is dead: no heartbeat for its whole lease", process_id)

    def _rescue_some(self) -> bool:
        began = time.monotonic()

        def rescue(which: Among) -> list[Rescued]:
            self.beat_if_due()
            with self._engine.begin() as connection:
                return self._queries.rescue(connection, among=which)

        def candidates(which: Among) -> list[int]:
            with self._engine.begin() as connection:
                return self._queries.to_rescue(connection, which)

        rescued = [job for part in self._set_aside.around("its rescue", rescue, candidates) for job in part]
        self._lost((job.task, job.queue) for job in rescued)
        for job in rescued:
            log_rescued(job)
        if not rescued:
            self._rescue_at = next_look(began, time.monotonic(), longest=self._lease_settings.lease)
        return bool(rescued)
