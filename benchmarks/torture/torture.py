"""The torture test: two hosts with workers, one server, a load, and the faults."""

from __future__ import annotations

import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import click
from sqlalchemy import Engine, create_engine, func, make_url, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from benchmarks.overshoots import out_of_order, overshoots, watch
from benchmarks.proxy import Proxy
from benchmarks.torture import refusals
from benchmarks.torture.app import SECOND_URL, Base, SecondBase, jobs
from benchmarks.torture.field import Field
from benchmarks.torture.hostile import Hostile
from benchmarks.torture.hosts import HostMaker
from benchmarks.torture.load import Ledger, Load
from benchmarks.torture.monitor import Monitor
from benchmarks.torture.plan import plan
from benchmarks.torture.report import counts
from benchmarks.torture.services import Service, knows
from benchmarks.torture.signals import Signals
from benchmarks.torture.storm import Storm
from benchmarks.torture.verdict import Facts, breaches, lost_by_step, read_facts
from sqla_jobs.postgres import LocalServer

_OURS = "torture-monitor"
_SECOND = "torture_second"
_QUIET = 15.0
"""Seconds without faults at the end."""
_LOAD_ENDS = 5.0
"""Seconds before the end at which the load stops."""
_POISON_EVERY = 15.0
_HOSTILE_EVERY = 1.0
_REFUSED_EVERY = 4.0
_REFUSED = 8
"""The maximum number of refused jobs of each task and oddity. Each may hold up a thread of a worker."""
_PROGRESS_EVERY = 10.0
_WORKER = ["--queues", "default=12", "--heartbeat", "1", "--lease", "6", "--grace", "10"]
_HUNG_AFTER = 8.0
_HANG_FOR, _HANG_SHORTLY = 3600.0, 20.0
"""Seconds for which a job hangs its process. The second number is for workers that do not kill hung processes."""
_STOP = 60.0
"""Seconds that a worker may take to end after SIGTERM: more than its grace and its last writes."""
_LIVE = jobs.Job.state.in_(["blocked", "scheduled", "queued", "running"])


class Torture:
    """All objects of one run of the torture test."""

    def __init__(
        self, stack: ExitStack, *, seed: int, rate: float, poll: float, logs: Path, make_host: HostMaker
    ) -> None:
        self._seed = seed
        self.server = stack.enter_context(LocalServer(durable=True))
        self._engine = stack.enter_context(_engine(self.server.url, application_name=_OURS))
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(f"CREATE DATABASE {_SECOND}"))
        self._second = stack.enter_context(_engine(_second(self.server.url)))
        Base.metadata.create_all(self._engine)
        SecondBase.metadata.create_all(self._second)
        refusals.refuse(self._engine)
        watch(self._engine, jobs)
        target = ("127.0.0.1", self.server.port)
        hosts = [stack.enter_context(make_host(number, target)) for number in range(2)]
        load_proxy = stack.enter_context(Proxy(target))
        load_engine = stack.enter_context(_engine(_behind(self.server.url, load_proxy), options="-c lock_timeout=2s"))
        self.ledger = Ledger()
        is_killed = knows("--hung-after")
        options = [*_WORKER, "--hung-after", f"{_HUNG_AFTER:g}"] if is_killed else [*_WORKER]
        if knows("--poll"):
            options += ["--poll", f"{poll:g}"]
        hang_for = _HANG_FOR if is_killed else _HANG_SHORTLY
        self._load = Load(load_engine, self.ledger, seed=seed, rate=rate, hang_for=hang_for)
        self._signals = Signals(load_engine, self.ledger, seed)
        stack.callback(self._signals.stop)
        stack.callback(self._load.stop)
        stack.callback(load_proxy.go_on)  # otherwise, cleanup would wait for stalled connections
        self.hostile = Hostile(self._engine, random.Random(f"hostile-{seed}"))
        self.monitor = Monitor(self._engine)
        stack.callback(self.monitor.stop)
        self.services = [
            Service(host, 0, _databases(host.proxy, self.server.url), [*options, "--processes", "2"], logs)
            for host in hosts
        ]
        for service in self.services:
            stack.callback(service.kill)
        field = Field(
            random.Random(seed),
            self.server,
            hosts,
            self.services,
            load=self._load,
            load_proxy=load_proxy,
            engine=self._engine,
            application_name=_OURS,
            monitor=self.monitor,
        )
        self.storm = Storm(field)
        self._breaches: list[str] = []

    def run(self, seconds: float) -> None:
        """Run the load and the faults."""
        faults_end = seconds - _QUIET
        faults = plan(random.Random(f"plan-{self._seed}"), faults_end)
        self._repeat(_POISON_EVERY, partial(self._load.add, "poison"), begin=5.0, end=faults_end)
        self._repeat(_HOSTILE_EVERY, self.hostile.add, end=faults_end)
        oddities = itertools.cycle(refusals.AT_WORK)
        self._repeat(
            _REFUSED_EVERY,
            lambda: self._load.add_refused(next(oddities)),
            end=min(faults_end, _REFUSED * len(refusals.AT_WORK) * _REFUSED_EVERY),
        )
        self._repeat(_PROGRESS_EVERY, self._tell, begin=_PROGRESS_EVERY, end=seconds - _PROGRESS_EVERY / 2)
        self.storm.agenda.at(seconds - _LOAD_ENDS, self._load.stop)
        self.storm.keep()
        self.monitor.start()
        self._load.start()
        self._signals.start()
        self.storm.run(faults, seconds, faults_end=faults_end)

    def _repeat(self, every: float, action: Callable[[], object], *, end: float, begin: float = 0.0) -> None:
        for k in itertools.takewhile(lambda k: begin + k * every < end, itertools.count()):
            self.storm.agenda.at(begin + k * every, action)

    def _tell(self) -> None:
        """Print the number of jobs in each state, on a separate line."""
        try:
            with Session(self._engine) as session:
                states = session.execute(select(jobs.Job.state, func.count()).group_by(jobs.Job.state)).all()
            told = counts(Counter({str(state): count for state, count in states}))
        except DBAPIError:  # progress reports are optional
            told = "the server is away"
        click.echo(f"{self.storm.agenda.now:7.1f} s  ({told})")

    def drain(self, timeout: float) -> float:
        """Wait until no job is left to run and no dead process has a row. Return the seconds that this took.

        First wait for the jobs that no trigger refuses. Then drop the triggers, and wait for the other jobs.
        """
        began = time.monotonic()
        self._wait(lambda: self._signals.are_sent and not self._held_up(), timeout)
        self._signals.stop()
        self._breaches += [f"while triggers refused other rows, {left}" for left in self._held_up()]
        self._wait(self._permitted, timeout)
        for service in self.services:
            service.renew()  # a worker repeats a refused deletion only after an hour, or when it starts
        self._wait(self._is_drained, timeout)
        return time.monotonic() - began

    def _wait(self, condition: Callable[[], bool], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not condition() and time.monotonic() < deadline:
            self.storm.keep()
            time.sleep(0.2)

    def _permitted(self) -> bool:
        """Try to drop the triggers. Workers may prevent that. Return whether the triggers are gone."""
        try:
            refusals.permit(self._engine)
        except DBAPIError:
            return False
        return True

    def _held_up(self) -> list[str]:
        """Describe jobs that did not end or were not pruned, although no trigger refuses them."""
        job = jobs.Job
        live = select(func.count()).select_from(job).where(_LIVE, job.oddity.is_(None))
        with Session(self._engine) as session:
            counted = {"did not end": session.scalar(live) or 0}
            counted["were not pruned"] = refusals.long_ended(session).get("old", 0)
        return [f"{count} jobs {what}" for what, count in counted.items() if count]

    def _is_drained(self) -> bool:
        job = jobs.Job
        judged = func.coalesce(job.oddity, "").in_(["", *refusals.AT_WORK])
        with Session(self._engine) as session:
            if session.scalar(select(job.id).where(_LIVE, judged).limit(1)) is not None:
                return False
            if refusals.long_ended(session):
                return False
            rows = set(session.scalars(select(jobs.Process.pid)))
        pids = [set(service.pids) for service in self.services]
        return all(rows & some for some in pids) and rows <= set[int]().union(*pids)

    def judge(self) -> tuple[Facts, list[str]]:
        """Return the facts and all breaches. The workers are stopped before the last checks."""
        living = [service.pids for service in self.services]
        with Session(self._engine) as session, Session(self._second) as second:
            facts = read_facts(session, second)
            found = [*self._breaches, *breaches(facts, self.ledger, living)]
            found += lost_by_step(facts, self.storm.stepped_over)
            found += overshoots(session.connection())
            found += out_of_order(session.connection(), jobs, only="j.oddity IS NULL")
            left = refusals.long_ended(session)
            found += [f"{count} {oddity!r} jobs that ended long ago are left" for oddity, count in left.items()]
        for service in self.services:
            service.stop()
        for service in self.services:
            service.ended(_STOP)
            found += service.breaches
        with Session(self._engine) as session:
            rows = session.scalars(select(jobs.Process.pid)).all()
        found += [f"the worker of pid {pid} ended in order and left its row" for pid in rows]
        found += [f"after a {fault}, jobs that it hit never went on" for fault in self.monitor.unrecovered]
        return facts, found


@contextmanager
def _engine(url: str, **connect_args: str) -> Generator[Engine]:
    engine = create_engine(url, connect_args=connect_args, pool_size=10, pool_pre_ping=True)
    try:
        yield engine
    finally:
        engine.dispose()


def _second(url: str) -> str:
    return make_url(url).set(database=_SECOND).render_as_string(hide_password=False)


def _behind(url: str, proxy: Proxy) -> str:
    return make_url(url).set(host=proxy.listen, port=proxy.port).render_as_string(hide_password=False)


def _databases(proxy: Proxy, url: str) -> dict[str, str]:
    """Return the environment variables that tell a worker the URLs of both databases."""
    return {"DATABASE_URL": _behind(url, proxy), SECOND_URL: _behind(_second(url), proxy)}
