"""The command `doctor`."""

from __future__ import annotations

from typing import Any

import click

from sqla_jobs.cli.application import in_each_shard, on_application
from sqla_jobs.cli.naming import ApplicationCommand
from sqla_jobs.cli.output import as_json, print_json, print_problems, print_table
from sqla_jobs.jobs import Jobs
from sqla_jobs.monitoring.examine import examine
from sqla_jobs.monitoring.finding import Verdict
from sqla_jobs.rules.wording import plural


@click.command(cls=ApplicationCommand)
@on_application
@click.option("--all", "lists_all", is_flag=True, help="List the checks that found no problem, too.")
@click.option("--strict", is_flag=True, help="Also exit with 1 for warnings.")
@as_json
@in_each_shard
def doctor(jobs: Jobs[Any], lists_all: bool, strict: bool, as_json: bool) -> None:
    """Find out what makes a queue slow or stuck, with a remedy for each problem.

    Exits with 1 if any finding is an error.
    """
    jobs.tasks.load()
    with jobs._binding().session() as session:
        findings = examine(session, jobs)
    if as_json:
        print_json(findings)
    else:
        well = [one for one in findings if one.verdict is Verdict.ok]
        print_problems(one for one in findings if one.verdict is not Verdict.ok)
        click.echo()
        if lists_all:
            print_table(["", "ABOUT", "FOUND"], [(one.verdict, one.about, one.found) for one in well])
        else:
            click.echo(f"{plural(len(well), 'check')} {'is' if len(well) == 1 else 'are'} well: `--all` lists them")
    wrong = {Verdict.error, Verdict.warning} if strict else {Verdict.error}
    if any(one.verdict in wrong for one in findings):
        click.get_current_context().exit(1)
