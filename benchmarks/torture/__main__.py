"""`python -m benchmarks.torture`: load and faults for some minutes, then the verdict. Exits with 1 on any breach."""

from __future__ import annotations

import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

import click

from benchmarks.torture.hosts import NamespaceHost, ProxiedHost, can_make_namespaces
from benchmarks.torture.report import report
from benchmarks.torture.storm import Storm
from benchmarks.torture.torture import Torture

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
@click.option("--drain", "drain_for", default=180.0, show_default=True, help="Seconds for all jobs to end afterwards.")
@click.option("--logs", type=click.Path(path_type=Path, file_okay=False), help="Keep the workers' logs here.")
@click.option("--network", type=click.Choice(["auto", "namespaces", "proxy"]), default="auto", show_default=True)
def main(
    minutes: float, seed: int, rate: float, poll: float, drain_for: float, logs: Path | None, network: str
) -> None:
    """Put two hosts of workers under steady load and seeded faults, and then check that every promise was kept."""
    for each in _SIGNALS:
        signal.signal(each, _on_signal)
    found_namespaces = network == "namespaces" or (network == "auto" and can_make_namespaces())
    make_host = NamespaceHost if found_namespaces else ProxiedHost
    with ExitStack() as stack:
        if logs is None:
            logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="torture-")))
        logs.mkdir(parents=True, exist_ok=True)
        torture = Torture(stack, seed=seed, rate=rate, poll=poll, logs=logs, make_host=make_host)
        where = "network namespaces" if found_namespaces else "proxies"
        click.echo(f"seed {seed}, {minutes:g} minutes, {len(torture.services)} services on 2 hosts behind {where}")
        seconds = minutes * 60
        torture.run(seconds)
        drained = torture.drain(drain_for)
        torture.monitor.stop()
        facts, found = torture.judge()
        click.echo(f"\n{len(facts.jobs)} jobs, drained {drained:.1f} s after the end")
        report(
            facts,
            torture.ledger,
            torture.monitor,
            faults=torture.storm.counts,
            hostile=torture.hostile.answers,
            seconds=seconds,
        )
        click.echo(f"\n{len(found)} breaches" if found else "\nno breach")
        for breach in found[:100]:
            click.echo(f"- {breach}")
    if found:
        sys.exit(1)


if __name__ == "__main__":
    main()
