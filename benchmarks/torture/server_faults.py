"""Faults of the server: it closes connections, crashes or restarts, and its clock steps."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

from sqlalchemy import func, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from benchmarks.torture.app import STOPPING, jobs
from benchmarks.torture.field import Fault, Field

_BACKENDS = text(
    "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND application_name <> :ours ORDER BY pid"
)
_TERMINATE = text("SELECT pg_terminate_backend(:pid)")
_STEP = (7.0, 120.0)
"""The range of steps of the clock, in seconds: all are longer than the lease."""


_ALIVE = 3.0
"""A process whose last heartbeat is at most this many seconds old is far from the end of its lease."""


class ServerFaults:
    """Faults of the database server."""

    def __init__(self, field: Field) -> None:
        self._field = field
        self._is_down = False
        self.stepped_over: set[int] = set()
        """The runs that were under way when the clock stepped without other faults."""
        self.kinds: dict[str, Fault] = {
            "backends": self._kill_backends,
            "crash": self._crash,
            "restart": self._restart,
            "clock": self._step_clock,
        }

    def _kill_backends(self) -> str | None:
        try:
            with self._field.engine.connect() as connection:
                pids = list(connection.scalars(_BACKENDS, {"ours": self._field.application_name}))
                if not pids:
                    return None
                some = self._field.rng.sample(pids, min(len(pids), self._field.rng.randint(1, 5)))
                hit = self._field.monitor.hit("backends", self._field.pids)
                for pid in some:
                    connection.execute(_TERMINATE, {"pid": pid})
        except DBAPIError:  # the server is down: try again later
            return None
        return f"pg_terminate_backend of {len(some)} of {len(pids)} connections, while {hit} jobs ran"

    def _crash(self) -> str | None:
        if self._is_down:
            return None
        self._is_down = True
        self._field.server.crash()
        return f"the server is gone for {self._field.after(0.2, 4.0, partial(self._start_server, 'crash')):.1f} s"

    def _restart(self) -> str | None:
        if self._is_down:
            return None
        self._is_down = True
        self._field.server.stop()
        length = self._field.after(0.0, 2.0, partial(self._start_server, "restart"))
        return f"the server is shut down for {length:.1f} s"

    def _start_server(self, fault: str) -> None:
        self._field.server.start()
        self._is_down = False
        self._field.monitor.outage_ended(fault)

    def _step_clock(self) -> str | None:
        """Make all heartbeats older at once. A forward step of the server's clock has the same effect."""
        seconds = self._field.rng.uniform(*_STEP)
        process = jobs.Process
        try:
            with Session(self._field.engine) as session:
                session.execute(update(process).values(heartbeat_at=process.heartbeat_at - timedelta(seconds=seconds)))
                session.commit()
        except DBAPIError:  # the server is down: try again later
            return None
        return f"the server's clock steps by {seconds:.1f} s"

    def step_quietly(self) -> None:
        """Step the clock while no other fault is active. A living process must not lose a run."""
        job, process = jobs.Job, jobs.Process
        just_now = func.statement_timestamp() - timedelta(seconds=_ALIVE)
        living = select(process.id).where(process.pid.in_(self._field.pids), process.heartbeat_at > just_now)
        running = select(job.current_run_id).where(
            job.state == "running", job.process_id.in_(living), job.task.not_in(STOPPING), job.oddity.is_(None)
        )
        with Session(self._field.engine) as session:
            self.stepped_over.update(run_id for run_id in session.scalars(running) if run_id is not None)
        self._step_clock()
