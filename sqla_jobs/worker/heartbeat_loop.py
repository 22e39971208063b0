"""The registration and heartbeat of a worker process, and the supervision of the jobs that it holds."""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from sqla_jobs.database.refusals import reason
from sqla_jobs.execution.held_job import Attempt
from sqla_jobs.queries import Claimed, Lease, processes
from sqla_jobs.runtime.heartbeat import next_look
from sqla_jobs.runtime.loop import Loop
from sqla_jobs.runtime.stopping import in_turn
from sqla_jobs.runtime.vitals import Vitals
from sqla_jobs.worker.services import WorkerServices
from sqla_jobs.worker.with_parent import Host

log: logging.Logger = logging.getLogger("sqla_jobs.worker")

_LOOK = 1.0
"""Seconds between checks of the held jobs for cancel requests. Each check also stores their progress."""
_PROGRESS = 0.1
"""The shortest time between writes of progress, in seconds."""
_AT_REST = 10.0
"""Seconds without jobs after which a process counts as idle."""


class Liveness:
    """Registers the process, makes its host send heartbeats, and watches the jobs, in a thread of its own.

    `tasks` is stored in the process's row. `lost` is called after the process was considered dead: the process
    continues under a new id, and has lost all its old leases. `give_back_unknown` gives back the jobs of claims whose
    replies never arrived. `leaving` is called before the process's row is deleted.
    """

    def __init__(
        self,
        services: WorkerServices,
        host: Host,
        *,
        tasks: Mapping[str, Any],
        sessions: int,
        lost: Callable[[], None],
        give_back_unknown: Callable[[uuid.UUID], None],
        leaving: Callable[[], None],
    ) -> None:
        """Prepare to register. The jobs use up to `sessions` connections."""
        self._engine = services.engine
        self._services = services
        self._models = services.models
        self._queries = services.queries
        self._settings = services.settings
        self._attempts = services.attempts
        self._host = host
        self._tasks = tasks
        self._sessions = sessions
        self._on_lost = lost
        self._give_back_unknown = give_back_unknown
        self._leaving = leaving
        longest = services.settings.longest_wait
        self._loop = Loop(
            "the heartbeat",
            self.step,
            name="sqla_jobs-liveness",
            server=services.engine,
            longest=longest,
            apart=_PROGRESS,
            finishes=True,
        )
        self._process_id: uuid.UUID | None = None
        self._vitals = Vitals(services.engine, services.models)
        self._unknown_at = time.monotonic() + services.settings.heartbeat

    @property
    def process_id(self) -> uuid.UUID:
        """The id of the row under which this process is currently registered."""
        assert self._process_id is not None, "start() comes first"
        return self._process_id

    @property
    def is_sure(self) -> bool:
        """True if the last heartbeat is recent enough for the process to take new jobs."""
        return time.monotonic() - self._host.beat_at < self._settings.lease / 2

    def start(self) -> None:
        """Register, then start a thread. Raises database errors."""
        self._register()
        self._tick_at = self._next_tick()
        self._loop.start()

    def stop(self, timeout: float) -> None:
        """Stop, and delete the process's row. Other workers can then take the process's remaining jobs immediately.

        The thread deletes the row, since this waits only up to `timeout` seconds for an answer of the server.
        """
        if not self._loop.stop(timeout):
            log.warning("could not sign off, the server does not answer: the lease will run out by itself")
        elif not self._loop.has_started and self._process_id is not None:
            self._sign_off()

    def _sign_off(self) -> None:
        try:
            in_turn(self._leaving, self._host.leaving, self._unregister)
        except DBAPIError as error:
            log.warning("could not sign off, the lease will run out by itself: %s", reason(error))

    def _unregister(self) -> None:
        with self._engine.begin() as connection:
            processes.unregister(connection, self._models, self.process_id)

    def _register(self) -> None:
        with self._engine.begin() as connection:
            process_id = processes.register(
                connection,
                self._models,
                kind="worker",
                queues=self._settings.queues,
                connections=self._host.all_connections + self._sessions,
                lease=self._settings.lease,
                tasks=self._tasks,
            )
        self._host.registered(process_id)  # the host must know the id before anything is claimed under it
        self._process_id = process_id

    def step(self) -> float:
        """Store reported progress, and look after the held jobs if that is due. Sign off in the last step."""
        if self._loop.stopping.is_set():
            self._sign_off()
            return math.inf
        if time.monotonic() >= self._tick_at:
            self._tick()
            self._tick_at = self._next_tick()
        else:
            self._store_progress()
        return self._tick_at

    def _next_tick(self) -> float:
        return time.monotonic() + min(_LOOK, self._settings.heartbeat, self._host.due_in)

    def wake(self) -> None:
        """Store progress soon: a task has reported progress."""
        self._loop.tell()

    def _store_progress(self) -> None:
        attempts = self._attempts.older_than(0.0)
        told: list[tuple[Lease | Claimed, float, str | None]] = []
        for one in (one for one in attempts if one.is_running and not one.is_silent):
            if (progress := one.progress) is not None and progress is not one.sent_progress:
                one.sent_progress = progress
                told.append((one.job, *progress))
        if not told:
            return
        with self._engine.begin() as connection:
            self._queries.store_progress(connection, told)

    def _tick(self) -> None:
        if not self._host.keep(self.process_id):
            log.warning(
                "this process was declared dead after %g s without a heartbeat; its jobs are left to others, "
                "and it continues under a new id",
                self._settings.lease,
            )
            self._register()
            self._on_lost()
        now = time.monotonic()
        if self._unknown_at <= now < self._attempts.unknown_until:
            self._give_back_unknown(self.process_id)
            rested_at = next_look(now, time.monotonic(), longest=self._settings.lease)
            self._unknown_at = max(now + self._settings.heartbeat, rested_at)
        attempts = self._attempts
        is_at_rest = not attempts and now >= max(attempts.busy_at + _AT_REST, attempts.unknown_until)
        self._store_progress()  # including progress that middleware reports
        if held := attempts.older_than(_LOOK / 2):
            with self._engine.begin() as connection:
                self._look(connection, held)
        self._services.set_aside.show(self._engine, self._queries, self.process_id)
        if is_at_rest:
            self._host.rest()
        else:  # an idle process would open a connection just for this
            self._vitals.show(self.process_id, attempts.ended_at)

    def _look(self, connection: sa.Connection, attempts: list[Attempt]) -> None:
        requests = self._queries.cancel_requests(connection, self.process_id, [one.job.job_id for one in attempts])
        for run_id, is_to_kill in requests.items():
            if (wanted := self._attempts.get(run_id)) is not None:
                wanted.cancel()
            if is_to_kill:
                self._host.kill_for(run_id)
