"""The command `grants`."""

from __future__ import annotations

from typing import Any

import click

from sqla_jobs.actions.grants import Roles
from sqla_jobs.actions.grants import grants as statements
from sqla_jobs.cli.naming import (
    ApplicationCommand,
    application_options,
    named_application,
    output_on_stderr,
    plain_errors,
)
from sqla_jobs.jobs import Jobs
from sqla_jobs.loading import load_jobs


@click.command(cls=ApplicationCommand)
@application_options
@click.option("--enqueuer", "enqueuers", multiple=True, metavar="ROLE", help="A role that adds jobs; repeatable.")
@click.option("--worker", "workers", multiple=True, metavar="ROLE", help="A role that runs workers and clocks.")
@click.option("--viewer", "viewers", multiple=True, metavar="ROLE", help="A role that reads and changes nothing.")
def grants(
    application: str | None,
    enqueuers: tuple[str, ...],
    workers: tuple[str, ...],
    viewers: tuple[str, ...],
    **_: Any,
) -> None:
    """Print the SQL that grants database roles exactly the rights they need. The SQL is not executed."""
    with plain_errors():
        roles = Roles(enqueuers, workers, viewers)
        with output_on_stderr():
            jobs: Jobs[Any] = load_jobs(named_application(application))
    for line in statements(jobs._models, roles):
        click.echo(line)
