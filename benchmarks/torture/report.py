"""The report about one run of the torture test."""

from __future__ import annotations

from collections import Counter

import click

from benchmarks.torture.load import Ledger
from benchmarks.torture.monitor import Monitor
from benchmarks.torture.verdict import Facts


def report(
    facts: Facts, ledger: Ledger, monitor: Monitor, *, faults: Counter[str], hostile: Counter[str], seconds: float
) -> None:
    """Print how many jobs, runs and other rows there are of each kind, and the recovery times after each fault."""
    states = Counter(job.state for job in facts.jobs.values())
    never_begun = sum(job.task == "once" and job.state == "failed" and not job.effects for job in facts.jobs.values())
    click.echo("jobs:    " + counts(states))
    click.echo("runs:    " + counts(Counter(run.outcome for job in facts.jobs.values() for run in job.runs)))
    after = [job for job in facts.jobs.values() if job.needs]
    click.echo("graphs:  " + counts(Counter(f"{job.state} after others" for job in after)))
    click.echo("commits: " + counts(ledger.answers))
    click.echo("cancels: " + counts(Counter(str(answer) for answer in ledger.cancels.values())))
    steps = Counter({"stored": sum(len(job.steps) for job in facts.jobs.values())})
    steps["called"] = sum(len(job.traces) for job in facts.jobs.values())
    click.echo("steps:   " + counts(steps))
    click.echo("signals: " + counts(Counter(str(answer) for _, answer in ledger.signals.values())))
    click.echo("faults:  " + counts(faults))
    click.echo("hostile: " + counts(hostile))
    click.echo(f"{never_begun} jobs of one attempt lost it to a fault before they left an effect")
    click.echo(f"{states['succeeded'] / seconds:.1f} jobs succeeded a second, over {seconds:.0f} s")
    click.echo(f"\n{'recovery':<12}{'measured':>9}{'p50':>9}{'max':>9}")
    for fault, count, median, longest in monitor.figures():
        click.echo(f"{fault:<12}{count:>9}{median:>7.2f} s{longest:>7.2f} s")


def counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counter.items())) or "none"
