"""`grants`."""

from __future__ import annotations

from typing import Any

import click

from sqla_jobs.actions.grants import Roles
from sqla_jobs.actions.grants import grants as statements
from sqla_jobs.cli.naming import ApplicationCommand, application_options, named_application, plain_errors, told_apart
from sqla_jobs.jobs import Jobs
from sqla_jobs.loading import load_jobs


@click.command(cls=ApplicationCommand)
@application_options
@click.option("--enqueuer", "enqueuers", multiple=True, metavar="ROLE", help="Adds jobs; may be given again.")
@click.option("--worker", "workers", multiple=True, metavar="ROLE", help="Runs workers and clocks.")
@click.option("--viewer", "viewers", multiple=True, metavar="ROLE", help="Looks, and changes nothing.")
def grants(
    application: str | None,
    database_url: str | None,
    enqueuers: tuple[str, ...],
    workers: tuple[str, ...],
    viewers: tuple[str, ...],
) -> None:
    """Print the SQL that gives roles of the database the rights they need, and no more. It is not executed."""
    with plain_errors():
        roles = Roles(enqueuers, workers, viewers)
        with told_apart():
            jobs: Jobs[Any] = load_jobs(named_application(application))
    for line in statements(jobs.models, roles):
        click.echo(line)
