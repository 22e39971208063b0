"""`retry`, `cancel`, `delete`, `enqueue`, `pause` and `resume`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sqlalchemy import select

from sqla_jobs.actions.bulk import CANCEL, DELETE, RETRY, Change
from sqla_jobs.actions.bulk import Progress as Done
from sqla_jobs.actions.selection import Selection
from sqla_jobs.cli import durations
from sqla_jobs.cli.application import ApplicationCommand, on_application
from sqla_jobs.cli.output import console
from sqla_jobs.cli.selecting import JOB_ID, selecting
from sqla_jobs.errors import JobsError
from sqla_jobs.jobs import Jobs
from sqla_jobs.models.columns import JobMixin
from sqla_jobs.models.types import JobState


def _command(change: Change, help: str) -> click.Command:  # noqa: A002
    """The command that makes `change` of the jobs named by ids or by a filter."""

    @on_application
    @click.argument("ids", metavar="[ID]...", nargs=-1, type=JOB_ID)
    @click.option("--all", "everything", is_flag=True, help="All jobs that there are.")
    @click.option("--yes", is_flag=True, help="Do not ask.")
    @selecting
    def run(jobs: Jobs[Any], selection: Selection, ids: tuple[int, ...], everything: bool, yes: bool) -> None:
        if ids and not (selection.is_everything and not everything):
            raise click.UsageError("ids, filters and --all exclude each other: give one of them, not both")
        if not ids and selection.is_everything != everything:
            raise click.UsageError("say which jobs: ids, a filter such as --state failed, or else --all")
        selection = replace(selection, ids=ids)
        missed = _not_possible(jobs, change, ids)
        carry_out(jobs, change, selection, ask=not (yes or ids))
        if missed:
            raise JobsError("\n".join(missed))

    return click.command(change.name, cls=ApplicationCommand, help=help)(run)


_BUSY = "somebody held or changed them meanwhile, or the server refused it and the log says why"
_WHY = {
    CANCEL.name: _BUSY,
    RETRY.name: f"another job that lives, or is newer, has their unique key, or {_BUSY}",
    DELETE.name: f"rows of the application refer to them, or {_BUSY}",
}


def _not_possible(jobs: Jobs[Any], change: Change, ids: tuple[int, ...]) -> list[str]:
    """What is to be said of each id for which there is nothing to change."""
    with jobs.binding().transaction() as session:
        rows = select(jobs.Job.id, jobs.Job.state).where(jobs.Job.id.in_(ids))
        states: dict[int, JobState] = {row[0]: row[1] for row in session.execute(rows)}
    return [
        f"job {job_id} is {states[job_id]}" if job_id in states else f"there is no job {job_id}"
        for job_id in ids
        if job_id not in states or states[job_id] not in change.states
    ]


def carry_out(jobs: Jobs[Any], change: Change, selection: Selection, *, ask: bool) -> None:
    """Make the change, once somebody confirmed their number if they are to be asked, and tell what came of it."""
    with jobs.binding().transaction() as session:
        count = change.count(session, jobs.models, selection)
    if ask and count:
        click.confirm(f"{change.name} {count:,} jobs?", abort=True, err=True)
    done = _with_progress(change.name, change.in_batches(jobs.binding(), jobs.models, selection), count)
    click.echo(f"{change.name}: {done.changed:,} jobs")
    if done.left_alone:
        click.echo(f"{done.left_alone:,} were left alone: {_WHY[change.name]}", err=True)


def _with_progress(name: str, steps: Iterator[Done], total: int) -> Done:
    """The last of `steps`, with a bar on standard error; broken off by Ctrl-C, it says how far it came."""
    done = Done(0, 0)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    is_seen = sys.stderr.isatty()
    bar = Progress(*columns, console=console(stderr=True), transient=True, disable=not is_seen)
    with bar if is_seen else nullcontext():
        shown = bar.add_task(name, total=total)
        try:
            for done in steps:
                bar.update(shown, completed=done.seen)
        except KeyboardInterrupt:
            raise JobsError(f"interrupted: {done.changed:,} jobs were changed, the others were not") from None
    return done


retry = _command(RETRY, "Queue jobs again that ended, or wait for their time.")
cancel = _command(CANCEL, "Cancel jobs that wait, and ask running ones to end.")
delete = _command(DELETE, "Delete jobs that do not run, and their runs.")


@click.command(cls=ApplicationCommand)
@on_application
@click.argument("task")
@click.argument("arguments", metavar="JSON", default="{}")
@click.option("--queue")
@click.option("--priority", type=int, help="From -10 to 10, lower runs first.")
@durations.duration_option("--delay", "delay", "Not before that: 90s, 15m, 12h, 7d.")
@click.option("--max-attempts", type=int)
@click.option("--unique-key", help="At most one live job has it.")
def enqueue(jobs: Jobs[Any], /, task: str, arguments: str, **given: Any) -> None:
    """Enqueue TASK with the arguments in JSON, an object; prints the job's id."""
    options = {name: value for name, value in given.items() if value is not None}
    wanted = jobs.tasks[task]
    codec = wanted.declaration.codec
    with jobs.binding().transaction() as session:
        job: JobMixin = wanted.options(**options).enqueue(session, **codec.load(session, codec.decode(arguments)))
        session.flush()
        job_id = job.id
    click.echo(job_id)


def _on_queue(action: Callable[[Jobs[Any]], Callable[[Any, str], None]], name: str, help: str) -> click.Command:  # noqa: A002
    @on_application
    @click.argument("queue")
    def run(jobs: Jobs[Any], queue: str) -> None:
        with jobs.binding().transaction() as session:
            action(jobs)(session, queue)

    return click.command(name, cls=ApplicationCommand, help=help)(run)


pause = _on_queue(lambda jobs: jobs.pause, "pause", "Claim no more jobs from QUEUE; what runs goes on.")
resume = _on_queue(lambda jobs: jobs.resume, "resume", "Claim jobs from QUEUE again.")
