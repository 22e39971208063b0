"""`python -m benchmarks.torture`: load and faults for some minutes, then the verdict. Exits with 1 on any breach."""

from __future__ import annotations

import itertools
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
from benchmarks.torture.faults import OURS, Monitor, Storm, plan
from benchmarks.torture.hostile import Hostile
from benchmarks.torture.hosts import Host, HostMaker, NamespaceHost, Service, can_make_namespaces
from benchmarks.torture.load import Ledger, Load, Signals
from benchmarks.torture.verdict import Facts, breaches, lost_by_step, read_facts
from sqla_jobs.postgres import LocalServer
from tests.limits.overshoots import out_of_order, overshoots, watch
from tests.proxy import Proxy

_SECOND = "torture_second"
_QUIET = 15.0
"""Seconds without faults at the end."""
_LOAD_ENDS = 5.0
"""Seconds before the end at which the load stops."""
_POISON_EVERY, _HOSTILE_EVERY, _REFUSED_EVERY, _PROGRESS_EVERY = 15.0, 1.0, 4.0, 10.0
_REFUSED = 8
"""The maximum number of refused jobs of each task and oddity. Each may hold up a thread of a worker."""
_WORKER = ["--queues", "default=12", "--processes", "2", "--heartbeat", "1", "--lease", "6"]
_WORKER += ["--grace", "10", "--hung-after", "8"]
_STOP = 60.0
"""Seconds that a worker may take to end after SIGTERM: more than its grace and its last writes."""
_LIVE = jobs.Job.state.in_(["blocked", "scheduled", "queued", "running"])


class Torture:
    """Two hosts with workers, one server, a load, and the faults."""

    def __init__(
        self, stack: ExitStack, *, seed: int, rate: float, poll: float, logs: Path, make_host: HostMaker
    ) -> None:
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
        hosts = [stack.enter_context(make_host(number, target)) for number in range(2)]
        load_proxy = stack.enter_context(Proxy(target))
        load_engine = stack.enter_context(_engine(_behind(server.url, load_proxy), options="-c lock_timeout=2s"))
        self.ledger = Ledger()
        self._load = Load(load_engine, self.ledger, seed=seed, rate=rate)
        self._signals = Signals(load_engine, self.ledger, seed)
        stack.callback(self._signals.stop)
        stack.callback(self._load.stop)
        stack.callback(load_proxy.go_on)  # otherwise, cleanup would wait for stalled connections
        self.hostile = Hostile(self._engine, random.Random(f"hostile-{seed}"))
        self.monitor = Monitor(self._engine)
        stack.callback(self.monitor.stop)
        self._services = list[Service]()
        for host in hosts:
            urls = {"DATABASE_URL": _behind(server.url, host.proxy), SECOND_URL: _behind(second, host.proxy)}
            self._services.append(Service(host, urls, [*_WORKER, "--poll", f"{poll:g}"], logs))
            stack.callback(self._services[-1].kill)
        self.storm = Storm(
            random.Random(seed), server, hosts, self._services, self._load, load_proxy, self._engine, self.monitor
        )
        self._breaches: list[str] = []

    def run(self, seconds: float) -> None:
        """Run the load and the faults."""
        faults_end = seconds - _QUIET
        faults = plan(random.Random(f"plan-{self._seed}"), faults_end)
        self._repeat(_POISON_EVERY, partial(self._load.add, "poison"), begin=5.0, end=faults_end)
        self._repeat(_HOSTILE_EVERY, self.hostile.add, end=faults_end)
        oddities = itertools.cycle(hostile.AT_WORK)

        def add_refused() -> None:
            oddity = next(oddities)
            for task in hostile.HELD_UP:
                self._load.add(task, oddity)

        refused_end = _REFUSED * len(hostile.AT_WORK) * _REFUSED_EVERY
        self._repeat(_REFUSED_EVERY, add_refused, end=min(faults_end, refused_end))
        self._repeat(_PROGRESS_EVERY, self._tell, begin=_PROGRESS_EVERY, end=seconds - _PROGRESS_EVERY / 2)
        self.storm.at(seconds - _LOAD_ENDS, self._load.stop)
        self.storm.keep()
        for thread in (self.monitor, self._load, self._signals):
            thread.start()
        self.storm.run(faults, seconds, faults_end=faults_end)

    def _repeat(self, every: float, action: Callable[[], object], *, end: float, begin: float = 0.0) -> None:
        for k in itertools.takewhile(lambda k: begin + k * every < end, itertools.count()):
            self.storm.at(begin + k * every, action)

    def _tell(self) -> None:
        """Print the number of jobs in each state, on a separate line."""
        try:
            with Session(self._engine) as session:
                told = _counts(session.scalars(select(jobs.Job.state)))
        except DBAPIError:  # progress reports are optional
            told = "the server is away"
        click.echo(f"{self.storm.now:7.1f} s  ({told})")

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
            counted = {"did not end": session.scalar(live) or 0}
            counted["were not pruned"] = hostile.long_ended(session).get("old", 0)
        return [f"{count} jobs {what}" for what, count in counted.items() if count]

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
            service.ended(_STOP)
            found += service.breaches
        with Session(self._engine) as session:
            rows = session.scalars(select(jobs.Process.pid)).all()
        found += [f"the worker of pid {pid} ended in order and left its row" for pid in rows]
        found += [f"after a {fault}, jobs that it hit never went on" for fault in self.monitor.unrecovered]
        return facts, found

    def report(self, facts: Facts, seconds: float) -> None:
        """Print how many jobs, runs and other rows there are of each kind, and the recovery times after each fault."""
        done, ledger = facts.jobs.values(), self.ledger
        lines = {
            "jobs": _counts(job.state for job in done),
            "runs": _counts(run.outcome for job in done for run in job.runs),
            "graphs": _counts(f"{job.state} after others" for job in done if job.needs),
            "commits": _counts(answer for _, answer in ledger.enqueued.values()),
            "cancels": _counts(ledger.cancels.values()),
            "steps": f"{sum(len(job.steps) for job in done)} stored, {sum(len(job.traces) for job in done)} called",
            "signals": _counts(answer for _, answer in ledger.signals.values()),
            "faults": _counts(self.storm.counts.elements()),
            "hostile": _counts(self.hostile.answers.elements()),
        }
        for name, counted in lines.items():
            click.echo(f"{name + ':':<9}{counted}")
        never_begun = sum(job.task == "once" and job.state == "failed" and not job.effects for job in done)
        click.echo(f"{never_begun} jobs of one attempt lost it to a fault before they left an effect")
        succeeded = sum(job.state == "succeeded" for job in done)
        click.echo(f"{succeeded / seconds:.1f} jobs succeeded a second, over {seconds:.0f} s")
        click.echo(f"\n{'recovery':<12}{'measured':>9}{'p50':>9}{'max':>9}")
        for fault, count, median, longest in self.monitor.figures():
            click.echo(f"{fault:<12}{count:>9}{median:>7.2f} s{longest:>7.2f} s")


def _counts(names: Iterable[object]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(Counter(map(str, names)).items())) or "none"


@contextmanager
def _engine(url: str, **connect_args: str) -> Generator[Engine]:
    engine = create_engine(url, connect_args=connect_args, pool_size=10, pool_pre_ping=True)
    try:
        yield engine
    finally:
        engine.dispose()


def _behind(url: str, proxy: Proxy) -> str:
    return make_url(url).set(host=proxy.listen, port=proxy.port).render_as_string(hide_password=False)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _on_signal(number: int, frame: FrameType | None) -> None:
    """Exit gracefully, and ignore further signals so that they do not interrupt the cleanup."""
    for each in _SIGNALS:
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
@click.option("--network", type=click.Choice(["auto", "namespaces", "proxy"]), default="auto", show_default=True)
def main(
    minutes: float, seed: int, rate: float, poll: float, drain_for: float, logs: Path | None, network: str
) -> None:
    """Put two hosts of workers under steady load and seeded faults, and then check that every promise was kept."""
    for each in _SIGNALS:
        signal.signal(each, _on_signal)
    has_namespaces = network == "namespaces" or (network == "auto" and can_make_namespaces())
    with ExitStack() as stack:
        if logs is None:
            logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="torture-")))
        logs.mkdir(parents=True, exist_ok=True)
        make_host: HostMaker = NamespaceHost if has_namespaces else Host
        torture = Torture(stack, seed=seed, rate=rate, poll=poll, logs=logs, make_host=make_host)
        where = "network namespaces" if has_namespaces else "proxies"
        click.echo(f"seed {seed}, {minutes:g} minutes, 2 hosts behind {where}")
        torture.run(minutes * 60)
        drained = torture.drain(drain_for)
        torture.monitor.stop()
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
