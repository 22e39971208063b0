"""The commands `prune` and `doctor`."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import Any

import click

from sqla_jobs.actions import pruning
from sqla_jobs.actions.jobs import Prune
from sqla_jobs.actions.pruning import OrphanedRuns
from sqla_jobs.actions.selection import Selection
from sqla_jobs.cli import durations
from sqla_jobs.cli.application import audited, in_each_shard, on_application
from sqla_jobs.cli.changing import Wanted, carry_out
from sqla_jobs.cli.naming import ApplicationCommand
from sqla_jobs.cli.output import as_json, print_json, print_problems, print_table
from sqla_jobs.database.refusals import warn
from sqla_jobs.jobs import Jobs
from sqla_jobs.models.types import ENDED, JobState
from sqla_jobs.monitoring.examine import examine
from sqla_jobs.monitoring.finding import Verdict
from sqla_jobs.queries.leftovers import Leftovers
from sqla_jobs.rules.retention import Rule
from sqla_jobs.rules.wording import plural


@click.command(cls=ApplicationCommand)
@on_application
@click.option(
    "--older-than",
    required=True,
    metavar="TIME",
    callback=durations.duration,
    help="The minimum time since a job's end, such as 12h or 7d.",
)
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice([*ENDED]),
    help="A state; repeatable. By default all states of ended jobs.",
)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@audited
@in_each_shard
def prune(jobs: Jobs[Any], actor: str, older_than: timedelta, states: tuple[str, ...], yes: bool) -> None:
    """Delete jobs that ended more than TIME ago, with their runs, in batches.

    Workers also prune, according to --retention. Without --state, runs that ended more than TIME ago and whose job no
    longer exists are deleted, too.
    """
    wanted = tuple(JobState(state) for state in states) or ENDED
    rules = tuple(Rule(state, older_than.total_seconds(), for_all=True) for state in wanted)
    carry_out(jobs, Wanted(Prune(rules)), Selection(states=wanted, ended_before=older_than), actor, ask=not yes)
    if states:
        return
    orphans = OrphanedRuns(Leftovers(jobs._models), older_than.total_seconds())
    batches = pruning.prune(orphans, jobs._binding().transaction, partial(warn, "delete", orphans.name))
    if gone := sum(count for count, _ in batches):
        click.echo(f"prune: {plural(gone, 'run')} whose job is gone")


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
