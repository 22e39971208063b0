"""`status`."""

from __future__ import annotations

from typing import Any

import click

from sqla_jobs.cli.application import ApplicationCommand, on_application
from sqla_jobs.core import Jobs
from sqla_jobs.status import Status, read_status


@click.command(cls=ApplicationCommand)
@on_application
def status(jobs: Jobs[Any]) -> None:
    """Queues, processes, and what waits for a task that nobody knows."""
    jobs.tasks.load()
    with jobs.binding().session_factory() as session:
        _print_status(read_status(session, jobs))


def _print_status(status: Status) -> None:
    click.echo("QUEUE                 QUEUED  SCHEDULED  RUNNING  OLDEST WAIT")
    for queue in status.queues:
        paused = "  paused" if queue.paused else ""
        wait = "-" if queue.oldest_wait is None else f"{queue.oldest_wait:.0f} s"
        click.echo(f"{queue.name:<20}  {queue.queued:>6}  {queue.scheduled:>9}  {queue.running:>7}  {wait:>11}{paused}")
    click.echo("\nPROCESS                               HOST                    PID  LAST BEAT  QUEUES")
    for process in status.processes:
        served = ",".join(f"{name}={number}" for name, number in process.queues.items())
        dead = "" if process.alive else "  dead"
        click.echo(
            f"{process.id}  {process.host:<18}  {process.pid:>7}  {process.beat_age:>6.0f} s ago  {served}{dead}"
        )
        for job in process.running:
            click.echo(f"    job {job.job_id} {job.task} attempt {job.attempt}, for {job.seconds:.0f} s")
    for warning in status.warnings:
        click.echo(f"\nwarning: {warning}", err=True)
