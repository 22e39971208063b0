"""The commands `enqueue` and `signal`."""

from __future__ import annotations

from typing import Any

import click

from sqla_jobs.actions import signals
from sqla_jobs.cli.application import actor_option, changing, on_application
from sqla_jobs.cli.naming import ApplicationCommand, output_on_stderr, right_usage
from sqla_jobs.cli.option_types import duration
from sqla_jobs.cli.output import shown
from sqla_jobs.cli.selecting import JOB_ID
from sqla_jobs.errors import JobsError
from sqla_jobs.jobs import Jobs
from sqla_jobs.models.columns import JobMixin


@click.command(cls=ApplicationCommand)
@on_application
@click.argument("task")
@click.argument("arguments", metavar="JSON", default="{}")
@click.option("--queue")
@click.option("--delay", metavar="TIME", type=duration, help="Time until the job is due: 90s, 15m, 12h, 7d.")
@actor_option
def enqueue(jobs: Jobs[Any], /, actor: str, task: str, arguments: str, **given: Any) -> None:
    """Enqueue TASK with arguments in a JSON object, and print the job's id."""
    options = {name: value for name, value in given.items() if value is not None}
    with output_on_stderr():
        wanted = jobs.tasks[task]
    codec = wanted._declaration.codec
    with changing(jobs, actor) as it:
        with right_usage():
            decoded = codec.load(it.session, codec.decode(arguments))
            job: JobMixin = wanted.options(**options).enqueue(it.session, **decoded)
        it.session.flush()
        it.record("enqueue", f"job {job.id}", task=job.task)
        job_id = job.id
    click.echo(job_id)


@click.command(cls=ApplicationCommand)
@on_application
@click.argument("job_id", metavar="ID", type=JOB_ID)
@click.argument("name")
@click.argument("payload", metavar="JSON", default="null")
@actor_option
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
    click.echo(shown(f"job {job_id} has the signal {name}"))
