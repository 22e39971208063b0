"""The faults: a seeded plan of them, how each begins and ends, and for how long it holds up work."""

from __future__ import annotations

import heapq
import itertools
import random
import signal
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import ClassVar

import click
from sqlalchemy import Engine, func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from benchmarks.torture.app import STOPPING, jobs
from benchmarks.torture.hosts import Host, Service
from benchmarks.torture.load import Load
from sqla_jobs.postgres import LocalServer
from sqla_jobs.queries.expressions import Tables, lock_key

KINDS = {"kill": 4, "freeze": 3, "backends": 3, "cut": 2, "commits": 2, "claims": 2, "stall": 2, "partition": 2}
KINDS |= dict.fromkeys(["shortage", "terminate", "hang", "clock", "crash", "restart"], 1)
"""All kinds of faults, with their weights. `Storm` has a method for each."""
OURS = "torture-storm"
"""The application_name of connections that no fault hits."""
_MINUTE, _BEGIN, _STEP = 60.0, 3.0, 0.05
_EVERY = 2.5
"""The average number of seconds between two faults."""
_LATER = 0.5
"""Seconds until the next try, if a fault was impossible."""
_SETTLED = 8.0
"""Seconds from the last fault until all effects of faults are over: more than the lease."""
_CLOCK_STEPS = (7.0, 120.0)
"""The range of steps of the clock, in seconds, forward or back: all are longer than the lease."""
_ALIVE = 3.0
"""A process whose last heartbeat is at most this many seconds old is far from the end of its lease."""
_PREPARED = b"_pg3_"
"""The prefix of the names of psycopg's prepared statements."""
_BACKENDS = text(
    "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND application_name <> :ours ORDER BY pid"
)


_TIMES = {
    jobs.Process.__tablename__: "heartbeat_at",
    jobs.Job.__tablename__: "started_at",
    jobs.Start.__tablename__: "started_at",
}
"""The tables and columns with the times of what goes on. They are moved when the clock steps."""
_Action = tuple[float, int, Callable[[], object]]


def plan(rng: random.Random, seconds: float) -> list[tuple[float, str]]:
    """Plan faults in this time, in order: when each begins, and its kind. Each kind occurs in every minute."""
    faults: list[tuple[float, str]] = []
    start = _BEGIN
    while start < seconds:
        end = seconds if seconds - start < 1.5 * _MINUTE else start + _MINUTE
        count = max(len(KINDS), int((end - start) / _EVERY))
        kinds = [*KINDS, *rng.choices([*KINDS], [*KINDS.values()], k=count - len(KINDS))]
        rng.shuffle(kinds)
        apart = (end - start) / count
        faults += [(start + (k + rng.random()) * apart, kind) for k, kind in enumerate(kinds)]
        start = end
    return sorted(faults)


@dataclass
class Storm:
    """Begins and ends each fault, and restarts services that ended, all in the calling thread.

    All random choices come from `rng`. The method of a kind begins a fault, plans its end, and returns a description,
    or `None` if the fault is impossible now.
    """

    rng: random.Random
    server: LocalServer
    hosts: Sequence[Host]
    services: Sequence[Service]
    load: Load
    load_host: Host
    engine: Engine
    """An engine with direct connections to the server, under the name `OURS`."""
    exit_code: ClassVar[int | None] = None
    """Set if a signal has asked the program to exit: an error of the statement that it interrupted may hide that."""
    stepped_over: set[int] = field(default_factory=set[int])
    """The runs that were under way when the clock stepped without other faults."""
    _busy: set[object] = field(default_factory=set[object])
    """What a fault now holds up."""
    _planned: list[_Action] = field(default_factory=list["_Action"])
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _began: float = 0.0
    _ends_at: float = 0.0

    @property
    def now(self) -> float:
        """The seconds since the start."""
        return time.monotonic() - self._began

    def at(self, seconds: float, action: Callable[[], object]) -> None:
        """Plan an action."""
        heapq.heappush(self._planned, (seconds, next(self._numbers), action))

    def run(self, faults: Sequence[tuple[float, str]], seconds: float, *, faults_end: float) -> None:
        """Begin the faults at their times and keep the services running, for this number of seconds.

        All faults end by `faults_end`. When the effects of all faults are over, the clock steps once more.
        """
        self._began, self._ends_at = time.monotonic(), faults_end
        for at, kind in faults:
            self.at(at, partial(self._try, kind))
        self.at(faults_end + _SETTLED, self._step_quietly)
        while self.now < seconds:
            while self._planned and self._planned[0][0] <= self.now:
                heapq.heappop(self._planned)[2]()
            self.keep()
            time.sleep(_STEP)

    def keep(self) -> None:
        """Start the services that have ended. Raises `SystemExit` if a signal has asked for it."""
        if self.exit_code is not None:
            raise SystemExit(self.exit_code)
        for service in self.services:
            service.keep()

    def _try(self, kind: str) -> None:
        began = self.now
        try:
            told = getattr(self, f"_{kind}")()
        except DBAPIError:  # the server is down
            told = None
        if told is None and self.now + _LATER < self._ends_at:
            self.at(self.now + _LATER, partial(self._try, kind))
            return
        click.echo(f"{began:7.1f} s  {kind:<10} {told or 'left out: there was no time left for it'}")

    def _hold(self, what: object, least: float, most: float, end: Callable[[], object]) -> float:
        """Plan the end of a fault that has just begun. Return its duration in seconds."""

        def let_go() -> None:
            end()
            self._busy.discard(what)

        self._busy.add(what)
        length = max(0.0, min(self.rng.uniform(least, most), self._ends_at - self.now))
        self.at(self.now + length, let_go)
        return length

    def _pick(self) -> tuple[Service, int, list[int]] | None:
        """Pick a process of a running service. Return the service, the pid, and all pids that stop with it."""
        running = [(service, pids) for service in self.services if (pids := service.pids)]
        if not running:
            return None
        service, pids = self.rng.choice(running)
        pid = self.rng.choice(pids)
        return service, pid, pids if pid == pids[0] else [pid]

    def _hit(self, pids: Collection[int]) -> str:
        """Return words about the jobs that run in these processes, which are about to be hit."""
        job, process = jobs.Job, jobs.Process
        of_these = select(process.id).where(process.pid.in_(pids))
        running = select(func.count()).select_from(job).where(job.state == "running", job.process_id.in_(of_these))
        try:
            with self.engine.connect() as connection:
                return f"which ran {connection.scalar(running)} jobs"
        except DBAPIError:
            return "while the server was down"

    def _hit_on(self, host: Host) -> str:
        return self._hit([pid for service in self.services if service.host is host for pid in service.pids])

    # Processes: they are killed, frozen, terminated or hung.

    def _kill(self) -> str | None:
        if (picked := self._pick()) is None:
            return None
        service, pid, pids = picked
        service.signal(pid, signal.SIGSTOP)  # so that the same jobs are counted and killed
        hit = self._hit(pids)
        service.signal(pid, signal.SIGKILL)
        return f"kill -9 of pid {pid} on {service.host.name}, {hit}"

    def _freeze(self) -> str | None:
        if (picked := self._pick()) is None or picked[1] in self._busy:
            return None
        service, pid, pids = picked
        service.signal(pid, signal.SIGSTOP)
        hit = self._hit(pids)
        length = self._hold(pid, 1.0, 12.0, partial(service.signal, pid, signal.SIGCONT))
        return f"SIGSTOP of pid {pid} on {service.host.name} for {length:.1f} s, {hit}"

    def _terminate(self) -> str | None:
        if (picked := self._pick()) is None or not (pids := picked[0].pids):
            return None
        hit = self._hit(pids)
        picked[0].signal(pids[0], signal.SIGTERM)
        return f"SIGTERM to the worker on {picked[0].host.name}, {hit}"

    def _shortage(self) -> str | None:
        """Let no process of a worker start a thread or a process."""
        if (picked := self._pick()) is None or picked[0] in self._busy:
            return None
        service = picked[0]
        service.starve()
        length = self._hold(service, 1.0, 6.0, service.feed)
        return f"no thread or process can start on {service.host.name} for {length:.1f} s, {self._hit(service.pids)}"

    def _hang(self) -> str:
        self.load.add("hang")
        return "a job keeps the interpreter's lock of its process"

    # The network: connections are cut or stalled, answers are lost, and whole hosts are cut off.

    def _pick_free(self, among: Sequence[Host]) -> Host | None:
        free = [host for host in among if host not in self._busy]
        return self.rng.choice(free) if free else None

    def _cut(self) -> str:
        host = self.rng.choice([self.load_host, *self.hosts, *self.hosts])
        hit = self._hit_on(host)
        host.proxy.cut()
        return f"all connections of {host.name} reset, {hit}"

    def _commits(self) -> str | None:
        return self._lose_answers("commits", [*self.hosts, self.load_host], b"COMMIT")

    def _claims(self) -> str | None:
        """Lose answers on workers' own connections, where each statement commits: to claims, ends and heartbeats."""
        return self._lose_answers("claims", self.hosts, b"UPDATE", _PREPARED)

    def _lose_answers(self, fault: str, among: Sequence[Host], *to: bytes) -> str | None:
        """Hold back answers, and then cut the connections. The server has done the work, but nobody is told."""
        if (host := self._pick_free(among)) is None:
            return None
        hit = self._hit_on(host)
        host.proxy.mute(*to)

        def end() -> None:
            host.proxy.cut()
            host.proxy.go_on()

        length = self._hold(host, 0.6, 2.0, end)
        return f"answers to each {to[0].decode()} of {host.name} are lost for {length:.1f} s, {hit}"

    def _stall(self) -> str | None:
        if (host := self._pick_free([*self.hosts, self.load_host])) is None:
            return None
        hit = self._hit_on(host)
        host.proxy.stall()
        length = self._hold(host, 1.0, 10.0, host.proxy.go_on)
        return f"connections of {host.name} pass nothing on for {length:.1f} s, {hit}"

    def _partition(self) -> str | None:
        if (host := self._pick_free(self.hosts)) is None:
            return None
        hit = self._hit_on(host)
        host.partition()
        length = self._hold(host, 2.0, 12.0, host.heal)
        return f"{host.name} is cut off for {length:.1f} s, {hit}"

    # The server: it closes connections, crashes or restarts, and its clock steps.

    def _backends(self) -> str | None:
        with self.engine.connect() as connection:
            pids = list(connection.scalars(_BACKENDS, {"ours": OURS}))
            if not pids:
                return None
            some = self.rng.sample(pids, min(len(pids), self.rng.randint(1, 5)))
            for pid in some:
                connection.execute(select(func.pg_terminate_backend(pid)))
        return f"pg_terminate_backend of {len(some)} of {len(pids)} connections"

    def _crash(self) -> str | None:
        return self._end_server(self.server.crash, 0.2, 4.0)

    def _restart(self) -> str | None:
        return self._end_server(self.server.stop, 0.0, 2.0)

    def _end_server(self, end: Callable[[], None], least: float, most: float) -> str | None:
        if self.server.url in self._busy:
            return None
        end()
        return f"the server is gone for {self._hold(self.server.url, least, most, self.server.start):.1f} s"

    def _clock(self, *, patience: str = "2 s") -> str:
        """Move all times that are compared with the server's clock. A step of the clock has the same effect.

        `patience` is the longest wait for a lock: this thread may have stalled the connection that has it.
        """
        seconds = self.rng.uniform(*_CLOCK_STEPS) * self.rng.choice([1, -1])
        times = dict(_TIMES)
        if seconds > 0:  # after a step back, the log has the time that has really passed
            times["all_starts"] = "started_at"
        with self.engine.begin() as connection:
            connection.execute(text(f"SET LOCAL lock_timeout = '{patience}'"))
            connection.execute(text(f"SELECT pg_advisory_xact_lock({lock_key(Tables(jobs._models), 'limits')})"))
            for table, column in times.items():
                only = " WHERE state = 'running' AND oddity IS NULL" if table == jobs.Job.__tablename__ else ""
                moved = f"UPDATE {table} SET {column} = {column} - make_interval(secs => :seconds){only}"
                connection.execute(text(moved), {"seconds": seconds})
        return f"the server's clock steps by {seconds:.1f} s"

    def _step_quietly(self) -> None:
        """Step the clock while no other fault is active. A living process must not lose a run."""
        job, process = jobs.Job, jobs.Process
        just_now = func.statement_timestamp() - timedelta(seconds=_ALIVE)
        pids = [pid for service in self.services for pid in service.pids]
        living = select(process.id).where(process.pid.in_(pids), process.heartbeat_at > just_now)
        running = select(job.current_run_id).where(
            job.state == "running", job.process_id.in_(living), job.task.not_in(STOPPING), job.oddity.is_(None)
        )
        with Session(self.engine) as session:
            self.stepped_over.update(run_id for run_id in session.scalars(running) if run_id is not None)
        self._clock(patience="90 s")  # a process that a job has left behind may hold a lock for as long as it lives
