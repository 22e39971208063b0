"""`signal`."""

from __future__ import annotations

from typing import Any

import click

from sqla_jobs.actions import signals
from sqla_jobs.cli.application import audited, changing, on_application
from sqla_jobs.cli.naming import ApplicationCommand, right_usage
from sqla_jobs.cli.selecting import JOB_ID
from sqla_jobs.errors import JobsError
from sqla_jobs.jobs import Jobs


@click.command(cls=ApplicationCommand)
@on_application
@click.argument("job_id", metavar="ID", type=JOB_ID)
@click.argument("name")
@click.argument("payload", metavar="JSON", default="null")
@audited
def signal(jobs: Jobs[Any], actor: str, job_id: int, name: str, payload: str) -> None:
    """Send a signal to a job, which receives it by run.wait_for.

    JSON is its payload, such as '{"by": "ada"}'. A job that waits for the signal is queued; otherwise the signal is
    kept until the job asks for it.
    """
    with right_usage():
        value = signals.read_payload(payload)
    with changing(jobs, actor) as it:
        if not signals.send(it, job_id, name, value):
            raise JobsError(f"job {job_id} has ended, and receives no signal")
    click.echo(f"job {job_id} has the signal {name}")
