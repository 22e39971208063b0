"""How `status` shows processes."""

from __future__ import annotations

from collections.abc import Sequence

import click

from sqla_jobs.cli.output import print_table, short
from sqla_jobs.monitoring.processes import ProcessStatus
from sqla_jobs.rules.wording import NOTHING, duration, offset


def print_processes(processes: Sequence[ProcessStatus]) -> None:
    """How each is, how it does, and what it runs."""
    print_table(
        ["PROCESS", "KIND", "HOST", "PID", "LAST BEAT", "QUEUES"],
        [
            (
                short(process.id),
                process.kind,
                process.host,
                process.pid,
                f"{duration(process.beat_age)} ago{'' if process.alive else ': dead'}",
                ",".join(f"{name}={number}" for name, number in process.queues.items()),
            )
            for process in processes
        ],
    )
    if processes:
        click.echo()
        print_table(
            ["PROCESS", "RUNNING", "LAST JOB", "CLOCK", "VERSION"],
            [
                (
                    short(process.id),
                    running(process.begun, process.claimed),
                    NOTHING if process.idle is None else f"{duration(process.idle)} ago",
                    offset(process.clock_offset),
                    process.version,
                )
                for process in processes
            ],
        )
    if any(process.running for process in processes):
        click.echo()
        print_table(
            ["RUNS NOW", "TASK", "ATTEMPT", "FOR", "PROCESS"],
            [
                (job.job_id, job.task, job.attempt, duration(job.seconds), short(process.id))
                for process in processes
                for job in process.running
            ],
        )


def running(begun: int, claimed: int) -> object:
    """How many jobs run, and how many a worker has claimed ahead."""
    return f"{begun} (+{claimed} claimed)" if claimed else begun
