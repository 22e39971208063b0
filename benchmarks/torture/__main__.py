"""`python -m benchmarks.torture`: load and faults for some minutes, then the verdict; exit code 1 on any breach."""

from __future__ import annotations

import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

import click
from sqlalchemy import Engine, create_engine, func, make_url, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from benchmarks.proxy import Proxy
from benchmarks.torture.app import Base, jobs
from benchmarks.torture.hosts import HostMaker, NamespaceHost, ProxiedHost, can_make_namespaces
from benchmarks.torture.load import Ledger, Load
from benchmarks.torture.monitor import Monitor
from benchmarks.torture.plan import plan
from benchmarks.torture.services import Service, have_supervisor
from benchmarks.torture.storm import Storm
from benchmarks.torture.verdict import Facts, breaches, outcomes, read_facts
from sqla_jobs.postgres import LocalServer

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_OURS = "torture-monitor"
_QUIET = 15.0
"""Seconds at the end without faults."""
_LOAD_ENDS = 5.0
"""Seconds before the end at which the load ends."""
_POISON_EVERY = 15.0
_PROGRESS_EVERY = 10.0
_WORKER = ["--queues", "default=12", "--heartbeat", "1", "--lease", "6", "--grace", "10"]
_STOP = 60.0
"""Seconds a worker may take to end after SIGTERM; more than its grace and its last writes."""


class Torture:
    """Two hosts with workers, one server, a load, and what is done to them."""

    def __init__(self, stack: ExitStack, *, seed: int, rate: float, logs: Path, make_host: HostMaker) -> None:
        self.server = stack.enter_context(LocalServer(durable=True))
        self.monitor_engine = stack.enter_context(_engine(self.server.url, application_name=_OURS))
        Base.metadata.create_all(self.monitor_engine)
        target = ("127.0.0.1", self.server.port)
        self.hosts = [stack.enter_context(make_host(number, target)) for number in range(2)]
        self.load_proxy = stack.enter_context(Proxy(target))
        load_engine = stack.enter_context(_engine(_behind(self.server, self.load_proxy), options="-c lock_timeout=2s"))
        self.ledger = Ledger()
        self.load = Load(load_engine, self.ledger, seed=seed, rate=rate)
        stack.callback(self.load.stop)
        stack.callback(self.load_proxy.go_on)  # what is held up would be waited for
        self.monitor = Monitor(self.monitor_engine)
        stack.callback(self.monitor.stop)
        self.services = self._make_services(logs)
        for service in self.services:
            stack.callback(service.kill)
        self.storm = Storm(
            random.Random(seed),
            self.server,
            self.hosts,
            self.services,
            load=self.load_proxy,
            engine=self.monitor_engine,
            application_name=_OURS,
            monitor=self.monitor,
        )

    def _make_services(self, logs: Path) -> list[Service]:
        """One supervisor of two on each host, or two workers where there is no supervisor yet."""
        options, count = ([*_WORKER, "--processes", "2"], 1) if have_supervisor() else (_WORKER, 2)
        return [
            Service(host, number, _behind(self.server, host.proxy), options, logs)
            for host in self.hosts
            for number in range(count)
        ]

    def run(self, seconds: float, seed: int) -> None:
        """The load and the storm."""
        faults_end = seconds - _QUIET
        faults = plan(random.Random(f"plan-{seed}"), faults_end)
        at = 5.0
        while at < faults_end:
            self.storm.agenda.at(at, self.load.poison)
            at += _POISON_EVERY
        self.storm.agenda.at(seconds - _LOAD_ENDS, self.load.stop)
        for k in range(1, int(seconds / _PROGRESS_EVERY)):
            self.storm.agenda.at(k * _PROGRESS_EVERY, self._tell)
        self.storm.keep()
        self.monitor.start()
        self.load.start()
        self.storm.run(faults, seconds, faults_end=faults_end)

    def _tell(self) -> None:
        """How the jobs stand, on a line of its own."""
        try:
            with Session(self.monitor_engine) as session:
                states = session.execute(select(jobs.Job.state, func.count()).group_by(jobs.Job.state)).all()
            told = _counts(Counter({str(state): count for state, count in states}))
        except DBAPIError:  # what is told is only how it goes
            told = "the server is away"
        click.echo(f"{self.storm.agenda.now:7.1f} s  ({told})")

    def drain(self, timeout: float) -> float:
        """Wait until no job is left to run and no row of a dead process; returns how long that took, at most."""
        began = time.monotonic()
        while not self._is_drained() and time.monotonic() - began < timeout:
            self.storm.keep()
            time.sleep(0.2)
        return time.monotonic() - began

    def _is_drained(self) -> bool:
        live = jobs.Job.state.in_(["scheduled", "queued", "running"])
        with Session(self.monitor_engine) as session:
            if session.scalar(select(jobs.Job.id).where(live).limit(1)) is not None:
                return False
            rows = set(session.scalars(select(jobs.Process.pid)))
        pids = [set(service.pids) for service in self.services]
        return all(rows & some for some in pids) and rows <= set[int]().union(*pids)

    def judge(self) -> tuple[Facts, list[str]]:
        """What is there, and all that is wrong with it; the workers are stopped for the last of it."""
        living = [service.pids for service in self.services]
        with Session(self.monitor_engine) as session:
            facts = read_facts(session)
            found = breaches(facts, self.ledger, living)
        for service in self.services:
            service.stop()
        for service in self.services:
            service.ended(_STOP)
            found += service.breaches
        with Session(self.monitor_engine) as session:
            left = session.scalars(select(jobs.Process.pid)).all()
        found += [f"the worker of pid {pid} ended in order and left its row" for pid in left]
        found += [f"after a {fault}, jobs that it hit never went on" for fault in self.monitor.unrecovered]
        return facts, found


@contextmanager
def _engine(url: str, **connect_args: str) -> Generator[Engine]:
    engine = create_engine(url, connect_args=connect_args, pool_size=10, pool_pre_ping=True)
    try:
        yield engine
    finally:
        engine.dispose()


def _behind(server: LocalServer, proxy: Proxy) -> str:
    url = make_url(server.url).set(host=proxy.listen, port=proxy.port)
    return url.render_as_string(hide_password=False)


def _report(torture: Torture, facts: Facts, seconds: float, drained: float) -> None:
    click.echo(f"\n{len(facts.jobs)} jobs, drained {drained:.1f} s after the end")
    states = Counter(job.state for job in facts.jobs.values())
    click.echo("jobs:    " + _counts(states))
    by_task = outcomes(facts)
    click.echo("runs:    " + _counts(sum(by_task.values(), Counter[str]())))
    click.echo("commits: " + _counts(torture.ledger.answers))
    click.echo("cancels: " + _counts(Counter(str(answer) for answer in torture.ledger.cancels.values())))
    click.echo("faults:  " + _counts(torture.storm.counts))
    click.echo(f"{states['succeeded'] / seconds:.1f} jobs succeeded a second, over {seconds:.0f} s")
    click.echo(f"\n{'recovery':<12}{'measured':>9}{'p50':>9}{'max':>9}")
    for fault, count, median, longest in torture.monitor.figures():
        click.echo(f"{fault:<12}{count:>9}{median:>7.2f} s{longest:>7.2f} s")


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counter.items())) or "none"


def _on_signal(number: int, frame: FrameType | None) -> None:
    """End in order, once: a second signal must not break off the cleaning up."""
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise SystemExit(128 + number)


@click.command()
@click.option("--minutes", default=1.0, show_default=True, type=click.FloatRange(min=0.5))
@click.option("--seed", default=1, show_default=True, help="Decides which fault comes when, and the load.")
@click.option("--rate", default=60.0, show_default=True, help="Jobs enqueued a second.")
@click.option("--drain", "drain_for", default=120.0, show_default=True, help="Seconds all may take to end afterwards.")
@click.option("--logs", type=click.Path(path_type=Path, file_okay=False), help="Keep the workers' logs here.")
@click.option("--network", type=click.Choice(["auto", "namespaces", "proxy"]), default="auto", show_default=True)
def main(minutes: float, seed: int, rate: float, drain_for: float, logs: Path | None, network: str) -> None:
    """Steady load, two hosts of workers, and faults by a seeded plan; then count what was promised."""
    for each in _SIGNALS:
        signal.signal(each, _on_signal)
    found_namespaces = network == "namespaces" or (network == "auto" and can_make_namespaces())
    make_host = NamespaceHost if found_namespaces else ProxiedHost
    with ExitStack() as stack:
        if logs is None:
            logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="torture-")))
        logs.mkdir(parents=True, exist_ok=True)
        torture = Torture(stack, seed=seed, rate=rate, logs=logs, make_host=make_host)
        where = "network namespaces" if found_namespaces else "proxies"
        click.echo(f"seed {seed}, {minutes:g} minutes, {len(torture.services)} services on 2 hosts behind {where}")
        seconds = minutes * 60
        torture.run(seconds, seed)
        drained = torture.drain(drain_for)
        torture.monitor.stop()
        facts, found = torture.judge()
        _report(torture, facts, seconds, drained)
        click.echo(f"\n{len(found)} breaches" if found else "\nno breach")
        for breach in found[:100]:
            click.echo(f"- {breach}")
    if found:
        sys.exit(1)


if __name__ == "__main__":
    main()
