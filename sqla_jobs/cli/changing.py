"""The commands `retry`, `change`, `cancel`, `erase` and `delete`: one for each action on jobs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sqla_jobs.actions.action import ACTIONS, Action
from sqla_jobs.actions.bulk_change import Change, Changed, counted, left_alone
from sqla_jobs.actions.bulk_change import Progress as Done
from sqla_jobs.actions.selection import Selection
from sqla_jobs.cli.application import actor_option, changing, on_application
from sqla_jobs.cli.naming import ApplicationCommand, right_usage
from sqla_jobs.cli.output import console
from sqla_jobs.cli.selecting import JOB_ID, check_queue, filter_options, half_searched, selection_in
from sqla_jobs.errors import JobsError
from sqla_jobs.jobs import Jobs
from sqla_jobs.rules.wording import plural


def command_of(action: Action) -> click.Command:
    """Return the command of an action, for jobs that are given by their ids or selected by filters."""

    @on_application
    @click.argument("ids", metavar="[ID]...", nargs=-1, type=JOB_ID)
    @click.option("--all", "everything", is_flag=True, help="Select all jobs.")
    @click.option("--limit", type=click.IntRange(1), metavar="N", help="At most N jobs, the oldest first.")
    @click.option("--yes", is_flag=True, help="Do not ask for confirmation, and accept a queue that nothing uses.")
    @click.option("--dry-run", is_flag=True, help="Change nothing; print how many jobs would change.")
    @filter_options
    @actor_option
    def run(
        jobs: Jobs[Any],
        actor: str,
        ids: tuple[int, ...],
        everything: bool,
        limit: int | None,
        yes: bool,
        dry_run: bool,
        **given: Any,
    ) -> None:
        selection = selection_in(jobs, given)
        if ids and (everything or not selection.is_everything):
            raise click.UsageError("ids, filters and --all exclude each other: give one of them")
        if not ids and selection.is_everything != everything:
            raise click.UsageError("no jobs are selected: give ids, a filter such as --state failed, or --all")
        with right_usage():
            change = action.made(given)
        of_many = [field.option for field in action.fields if field.is_for_many and given[field.name]]
        if ids and (limit or of_many):
            raise click.UsageError(f"{[*of_many, '--limit'][0]} needs a filter or --all: leave it out, or give no ids")
        if (queue := given.get("to")) and not yes:
            with jobs._binding().session() as session:
                check_queue(jobs, session, queue, "; --yes accepts it all the same")
        if ids and not dry_run:
            _change_each(jobs, change, ids, actor)
        else:
            meant = Selection(ids=ids) if ids else selection
            _change_all(jobs, change, meant, limit, actor, ask=not yes, is_dry=dry_run)

    for field in reversed(action.fields):
        text = f"{field.help} Such as {field.example}." if field.example else field.help
        run = click.option(field.option, field.name, is_flag=field.read is None, help=text)(run)
    return click.command(action.name, cls=ApplicationCommand, help=action.says)(run)


def _change_each(jobs: Jobs[Any], change: Change, ids: Sequence[int], actor: str) -> None:
    """Change the jobs with these ids one by one, each in its own transaction.

    Raises `JobsError` that names the jobs that were not changed; the others stay changed.
    """
    done, missed = Changed(), list[str]()
    for job_id in dict.fromkeys(ids):
        try:
            with changing(jobs, actor) as it:
                done = done.and_then([job_id], [job_id] if change.one(it, job_id) else [])
        except JobsError as error:
            missed.append(str(error))
    click.echo(f"{change.name}: {plural(done.changed, 'job')}")
    if done.left:
        missed.append(f"{left_alone(done)}: `sqla-jobs show {done.left[0]}` says more about it")
    if missed:
        raise JobsError("\n".join(missed))


def _change_all(
    jobs: Jobs[Any], change: Change, selection: Selection, most: int | None, actor: str, *, ask: bool, is_dry: bool
) -> None:
    """Change the selected jobs in batches and print the result. With `ask`, first ask for confirmation.

    With `is_dry`, only print how many jobs in each state would change.
    """
    meant = change.meant(selection)
    with jobs._binding().session() as session:
        by_state = change.count(session, jobs._models, meant)
    if meant.half_searched:
        click.echo(half_searched(meant), err=True)
    there = sum(by_state.values())
    number = there if most is None else min(there, most)
    some = f"the oldest {number:,} of " if number < there else ""
    what = f"{some}{counted(by_state) if by_state else 'no jobs'}{_details(change)}"
    if is_dry:
        click.echo(f"{change.name}: {what}; this is a dry run, nothing is changed")
        return
    if ask and by_state:
        click.confirm(f"{change.name} {what}?", abort=True, err=True)
    steps = change.for_jobs(meant, number).in_batches(partial(changing, jobs, actor), meant, most=most)
    done = _with_progress(change.name, steps, number)
    click.echo(f"{change.name}: {plural(done.changed, 'job')}")
    if alone := left_alone(done):
        click.echo(alone, err=True)


def _details(change: Change) -> str:
    """Return what is to change, such as `, queue mail, priority 5`, to end a question."""
    return "".join(f", {name.replace('_', ' ')} {value}" for name, value in change.details.items())


def _with_progress(name: str, steps: Iterator[Done], total: int) -> Done:
    """Run all `steps`, with a progress bar on standard error, and return the last result.

    Raises `JobsError` with the number of changed jobs on Ctrl-C.
    """
    done = Done()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    is_seen = sys.stderr.isatty()
    bar = Progress(*columns, console=console(stderr=True), transient=True, disable=not is_seen)
    with bar if is_seen else nullcontext():
        shown = bar.add_task(name, total=total)
        try:
            for done in steps:
                bar.update(shown, completed=done.seen)
        except KeyboardInterrupt:
            raise JobsError(f"interrupted: {plural(done.changed, 'job')} changed, the rest unchanged") from None
    return done


retry: click.Command = command_of(ACTIONS["retry"])
change: click.Command = command_of(ACTIONS["change"])
cancel: click.Command = command_of(ACTIONS["cancel"])
erase: click.Command = command_of(ACTIONS["erase"])
delete: click.Command = command_of(ACTIONS["delete"])
