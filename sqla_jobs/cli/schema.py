"""The commands `migrate` and `grants`."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import click

from sqla_jobs.actions.grants import Roles
from sqla_jobs.actions.grants import grants as statements
from sqla_jobs.cli.application import in_each_shard, on_application
from sqla_jobs.cli.naming import (
    ApplicationCommand,
    application_options,
    named_application,
    output_on_stderr,
    plain_errors,
)
from sqla_jobs.cli.output import as_json, print_json, print_problems, remedy
from sqla_jobs.jobs import Jobs
from sqla_jobs.loading import load_jobs
from sqla_jobs.migrations.comparison import compare
from sqla_jobs.models.version import LATEST, found_version, outdated, releases_on
from sqla_jobs.monitoring.examine import examine_deploy
from sqla_jobs.monitoring.finding import Finding


@click.command(cls=ApplicationCommand)
@on_application
@click.option("--check", is_flag=True, help="Change nothing; exit with 1 if the tables differ from the expected ones.")
@click.option("--sql", is_flag=True, help="Print the statements without executing them.")
@click.option("--citus", is_flag=True, help="Also let Citus commit jobs and distributed tables in two phases.")
@as_json
@in_each_shard
def migrate(jobs: Jobs[Any], check: bool, sql: bool, citus: bool, as_json: bool) -> None:
    """Create or upgrade the tables, in a database without an Alembic history."""
    if check:
        _check(jobs, as_json)
    if citus and sql:
        raise click.UsageError("--citus excludes --sql: give one")
    from sqla_jobs.migrations import applying

    if sql:
        applying.print_migration(jobs._binding().engine if jobs._is_bound else None, jobs._models, sys.stdout)
        return
    done = applying.migrate(jobs._binding().engine, jobs._models)
    for line in done:
        click.echo(line)
    if citus:
        applying.force_two_phases(jobs._binding().engine, jobs._models)
    elif not done:
        click.echo(f"nothing to do: the tables are of version {LATEST}, or newer")


def _check(jobs: Jobs[Any], as_json: bool) -> NoReturn:
    """Print a line for each difference between the tables and those that this version expects, and exit.

    If there is none, warns about settings, triggers and keys that keep workers from their work. The last line says
    which releases of sqla_jobs run on the tables.
    """
    jobs.tasks.load()
    with jobs._binding().engine.connect().execution_options(isolation_level="READ COMMITTED") as connection:
        found = compare(connection, jobs._models)
        version = found_version(connection, jobs._models.tables["jobs"])
    warnings = list[Finding]()
    if not found:
        with jobs._binding().session() as session:
            warnings = examine_deploy(session, jobs)
    if as_json:
        print_json(found or warnings)
    else:
        if version and version < LATEST:
            click.echo(remedy(outdated(version)))
        for one in found:
            click.echo(one)
        if not found:
            click.echo(f"the tables are those of version {LATEST}")
            print_problems(warnings)
        if version and (releases := releases_on(version)):
            click.echo(f"code of sqla_jobs {releases} runs on tables of version {version}")
    sys.exit(1 if found else 0)


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
