"""`python -m benchmarks.torture`: load and faults for some minutes, then the verdict. Exits with 1 on any breach."""

from __future__ import annotations

import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

import click
from sqlalchemy import Engine, create_engine, func, make_url, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from benchmarks.torture import hostile
from benchmarks.torture.app import SECOND_URL, Base, SecondBase, jobs
from benchmarks.torture.faults import OURS, Storm, plan
from benchmarks.torture.hostile import Hostile
from benchmarks.torture.hosts import Host, NamespaceHost, Service, can_make_namespaces
from benchmarks.torture.load import Ledger, Load, Signals
from benchmarks.torture.verdict import Facts, breaches, lost_by_step, read_facts
from sqla_jobs.postgres import LocalServer
from tests.limits.overshoots import out_of_order, overshoots, watch

_SECOND = "torture_second"
_QUIET, _LOAD_ENDS = 15.0, 5.0
"""Seconds before the end at which the faults and the load stop."""
_POISON_EVERY, _REFUSED_EVERY = 15, 4
"""Seconds from one such job to the next. A hostile row is added every second."""
_REFUSED = 8
"""The maximum number of refused jobs of each task and oddity. Each may hold up a thread of a worker."""
_WORKER = ["--queues", "default=12", "--processes", "2", "--heartbeat", "1", "--lease", "6"]
_WORKER += ["--grace", "10", "--hung-after", "8"]
_STOP = 32.0
"""Seconds that a worker may take to end after SIGTERM: its grace, 20 s, and a little for a busy machine."""
_LAST_WORK = 15.0
"""Seconds that a worker may take to drain the last jobs."""
_LAST = 60
"""The number of jobs that are drained at the end."""
_LIVE = jobs.Job.state.in_(["blocked", "scheduled", "queued", "running"])


class Torture:
    """Two hosts with workers, one server, a load, and the faults."""

    def __init__(self, stack: ExitStack, seed: int, rate: float, poll: float, logs: Path, kind: type[Host]) -> None:
        self._seed = seed
        server = stack.enter_context(LocalServer(durable=True))
        second = make_url(server.url).set(database=_SECOND).render_as_string(hide_password=False)
        self._engine = stack.enter_context(_engine(server.url, application_name=OURS))
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(f"CREATE DATABASE {_SECOND}"))
        self._second = stack.enter_context(_engine(second))
        Base.metadata.create_all(self._engine)
        SecondBase.metadata.create_all(self._second)
        hostile.refuse(self._engine)
        watch(self._engine, jobs)
        target = ("127.0.0.1", server.port)
        hosts = [stack.enter_context(kind(number, target)) for number in range(2)]
        load_host = stack.enter_context(Host(2, target))
        load_engine = stack.enter_context(_engine(_behind(server.url, load_host), options="-c lock_timeout=2s"))
        self.ledger = Ledger()
        self._load = Load(load_engine, self.ledger, seed=seed, rate=rate)
        self._signals = Signals(load_engine, self.ledger, seed)
        stack.callback(self._signals.stop)
        stack.callback(self._load.stop)
        stack.callback(load_host.heal)  # otherwise, cleanup would wait for stalled connections
        self._hostile = Hostile(self._engine, random.Random(f"hostile-{seed}"))
        self._services = list[Service]()
        for host in hosts:
            urls = {"DATABASE_URL": _behind(server.url, host), SECOND_URL: _behind(second, host)}
            self._services.append(Service(host, urls, [*_WORKER, "--poll", f"{poll:g}"], logs))
            stack.callback(self._services[-1].kill)
        self.storm = Storm(random.Random(seed), server, hosts, self._services, self._load, load_host, self._engine)
        self._breaches: list[str] = []

    def run(self, seconds: float) -> None:
        """Run the load and the faults."""
        faults_end = seconds - _QUIET
        faults = plan(random.Random(f"plan-{self._seed}"), faults_end)
        every = range(int(faults_end))
        actions = [(at, self._hostile.add) for at in every]
        actions += [(at, partial(self._load.add, "poison")) for at in every[5::_POISON_EVERY]]
        for at, oddity in zip(every[::_REFUSED_EVERY], hostile.AT_WORK * _REFUSED, strict=False):
            actions += [(at, partial(self._load.add, task, oddity)) for task in hostile.HELD_UP]
        for at, action in actions:
            self.storm.at(at, action)
        self.storm.at(seconds - _LOAD_ENDS, self._load.stop)
        self.storm.keep()
        for thread in (self._load, self._signals):
            thread.start()
        self.storm.run(faults, seconds, faults_end=faults_end)

    def drain(self, timeout: float) -> float:
        """Wait until no job is left to run and no dead process has a row. Return the seconds that this took.

        First wait for the jobs that no trigger refuses. Then drop the triggers, and wait for the other jobs.
        """
        began = time.monotonic()
        self._wait(lambda: self._signals.are_sent and not self._held_up(), timeout)
        self._signals.stop()
        self._breaches += [f"while triggers refused other rows, {left}" for left in self._held_up()]
        self._wait(self._permitted, timeout)
        for service in self._services:
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
            hostile.permit(self._engine)
        except DBAPIError:
            return False
        return True

    def _held_up(self) -> list[str]:
        """Describe jobs that did not end or were not pruned, although no trigger refuses them."""
        job = jobs.Job
        live = select(func.count()).select_from(job).where(_LIVE, job.oddity.is_(None))
        with Session(self._engine) as session:
            counts = {"did not end": session.scalar(live), "were not pruned": hostile.long_ended(session).get("old")}
        return [f"{count} jobs {what}" for what, count in counts.items() if count]

    def _is_drained(self) -> bool:
        job = jobs.Job
        judged = func.coalesce(job.oddity, "").in_(["", *hostile.AT_WORK])
        with Session(self._engine) as session:
            if session.scalar(select(job.id).where(_LIVE, judged).limit(1)) or hostile.long_ended(session):
                return False
            rows = set(session.scalars(select(jobs.Process.pid)))
        pids = [set(service.pids) for service in self._services]
        return all(rows & some for some in pids) and rows <= set[int]().union(*pids)

    def judge(self) -> tuple[Facts, list[str]]:
        """Return the facts and all breaches. The workers are stopped before the last checks."""
        living = [service.pids for service in self._services]
        with Session(self._engine) as session, Session(self._second) as second:
            facts = read_facts(session, second)
            found = [*self._breaches, *breaches(facts, self.ledger, living)]
            found += lost_by_step(facts, self.storm.stepped_over)
            found += overshoots(session.connection())
            found += out_of_order(session.connection(), jobs, only="j.oddity IS NULL")
            left = hostile.long_ended(session)
            found += [f"{count} {oddity!r} jobs that ended long ago are left" for oddity, count in left.items()]
        for service in self._services:
            service.stop()
        for service in self._services:
            service.ended(_STOP, "SIGTERM")
        found += self._drain_last()
        for service in self._services:
            found += service.breaches
        with Session(self._engine) as session:
            rows = session.scalars(select(jobs.Process.pid)).all()
        found += [f"the worker of pid {pid} ended in order and left its row" for pid in rows]
        return facts, found

    def _drain_last(self) -> list[str]:
        """Drain jobs that leave things behind, as the last act of each host. Return the breaches."""
        with Session(self._engine) as session:
            last = [jobs.tasks["litter"].enqueue(session, n=n, seconds=0.0) for n in range(_LAST)]
            session.commit()
            for service in self._services:
                service.drain()
            for service in self._services:
                service.ended(_LAST_WORK + _STOP, "--drain")
            states = Counter(job.state.value for job in last)  # read again, after the commit
        return [] if states == {"succeeded": _LAST} else [f"{_LAST} jobs were drained, and their states are {states}"]

    def report(self, facts: Facts, seconds: float) -> None:
        """Print how many jobs, runs and commits there are of each kind, to show what was tried."""
        done = facts.jobs.values()
        after = sum(bool(job.needs) for job in done)
        click.echo(f"jobs:    {_counts(job.state for job in done)}, {after} after others")
        click.echo(f"runs:    {_counts(run.outcome for job in done for run in job.runs)}")
        click.echo(f"commits: {_counts(answer for _, answer in self.ledger.enqueued.values())}")
        click.echo(f"{sum(job.state == 'succeeded' for job in done) / seconds:.1f} jobs succeeded a second")


def _counts(names: Iterable[object]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(Counter(map(str, names)).items())) or "none"


@contextmanager
def _engine(url: str, **connect_args: str) -> Generator[Engine]:
    engine = create_engine(url, connect_args=connect_args, pool_size=10, pool_pre_ping=True)
    try:
        yield engine
    finally:
        engine.dispose()


def _behind(url: str, host: Host) -> str:
    return make_url(url).set(host=host.proxy.listen, port=host.proxy.port).render_as_string(hide_password=False)


def _on_signal(number: int, frame: FrameType | None) -> None:
    """Exit gracefully, and ignore further signals so that they do not interrupt the cleanup."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    Storm.exit_code = 128 + number
    raise SystemExit(Storm.exit_code)


@click.command()
@click.option("--minutes", default=1.0, show_default=True, type=click.FloatRange(min=0.5))
@click.option("--seed", default=1, show_default=True, help="Determines the faults, their times, and the load.")
@click.option("--rate", default=60.0, show_default=True, help="Jobs to enqueue per second.")
@click.option("--poll", default=1.0, show_default=True, help="The workers' --poll; 3600 reveals jobs that need it.")
@click.option("--drain", "drain_for", default=300.0, show_default=True, help="Seconds for all jobs to end afterwards.")
@click.option("--logs", type=click.Path(path_type=Path, file_okay=False), help="Keep the workers' logs here.")
def main(minutes: float, seed: int, rate: float, poll: float, drain_for: float, logs: Path | None) -> None:
    """Put two hosts of workers under steady load and seeded faults, and then check that every promise was kept."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, _on_signal)
    kind = NamespaceHost if can_make_namespaces() else Host
    with ExitStack() as stack:
        if logs is None:
            logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="torture-")))
        logs.mkdir(parents=True, exist_ok=True)
        torture = Torture(stack, seed, rate, poll, logs, kind)
        where = "network namespaces" if kind is NamespaceHost else "proxies"
        click.echo(f"seed {seed}, {minutes:g} minutes, 2 hosts behind {where}")
        torture.run(minutes * 60)
        drained = torture.drain(drain_for)
        facts, found = torture.judge()
        click.echo(f"\n{len(facts.jobs)} jobs, drained {drained:.1f} s after the end")
        torture.report(facts, minutes * 60)
        click.echo(f"\n{len(found)} breaches" if found else "\nno breach")
        for breach in found[:100]:
            click.echo(f"- {breach}")
    if found:
        sys.exit(1)


if __name__ == "__main__":
    main()
