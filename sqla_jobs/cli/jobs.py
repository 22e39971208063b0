"""`retry`, `cancel`, `delete` and `enqueue`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sqlalchemy import select
from sqlalchemy.orm import Session

from sqla_jobs.actions.audit import Changing
from sqla_jobs.actions.bulk import CANCEL, DELETE, RETRY, Change, counted
from sqla_jobs.actions.bulk import Progress as Done
from sqla_jobs.actions.erasure import ERASE
from sqla_jobs.actions.selection import Selection
from sqla_jobs.cli import durations
from sqla_jobs.cli.application import ApplicationCommand, audited, changing, on_application
from sqla_jobs.cli.output import console
from sqla_jobs.cli.selecting import JOB_ID, selecting
from sqla_jobs.errors import JobsError
from sqla_jobs.jobs import Jobs
from sqla_jobs.models.columns import JobMixin
from sqla_jobs.models.types import JobState
from sqla_jobs.rules.wording import did_you_mean, plural


def _command(change: Change, help: str) -> click.Command:  # noqa: A002
    """The command that makes `change` of the jobs named by ids or by a filter."""

    @on_application
    @click.argument("ids", metavar="[ID]...", nargs=-1, type=JOB_ID)
    @click.option("--all", "everything", is_flag=True, help="All jobs that there are.")
    @click.option("--yes", is_flag=True, help="Do not ask.")
    @selecting
    @audited
    def run(
        jobs: Jobs[Any], actor: str, selection: Selection, ids: tuple[int, ...], everything: bool, yes: bool
    ) -> None:
        if ids and not (selection.is_everything and not everything):
            raise click.UsageError("ids, filters and --all exclude each other: give one of them, not both")
        if not ids and selection.is_everything != everything:
            raise click.UsageError("say which jobs: ids, a filter such as --state failed, or else --all")
        if ids:
            _carry_out_each(jobs, change, ids, actor, ask=not yes)
        else:
            _check_tasks(jobs, selection)
            carry_out(jobs, change, selection, actor, ask=not yes)

    return click.command(change.name, cls=ApplicationCommand, help=help)(run)


def _check_tasks(jobs: Jobs[Any], selection: Selection) -> None:
    """Raise `JobsError` for a task that neither the application nor any job has: it is a slip, as a rule."""
    known = set(jobs.tasks)
    with jobs.binding().transaction() as session:
        for task in set(selection.tasks) - known:
            if session.scalar(select(jobs.Job.id).where(jobs.Job.task == task).limit(1)) is None:
                raise JobsError(f"no job is of task {task!r}, and no task has that name{did_you_mean(task, known)}")


def _carry_out_each(jobs: Jobs[Any], change: Change, ids: tuple[int, ...], actor: str, *, ask: bool) -> None:
    """Of jobs named one by one each that is not changed is told, with the reason; raises `JobsError` then."""
    with jobs.binding().transaction() as session:
        rows = select(jobs.Job.id, jobs.Job.state).where(jobs.Job.id.in_(ids))
        states: dict[int, JobState] = {row[0]: row[1] for row in session.execute(rows)}
    unusual = [job_id for job_id in ids if states.get(job_id) in set(change.states) - set(change.by_default)]
    if ask and unusual:
        told = ", ".join(f"job {job_id} is {states[job_id]}" for job_id in unusual)
        click.confirm(f"{told}: {change.name} all the same?", abort=True, err=True)
    changed, missed = 0, list[str]()
    for job_id in dict.fromkeys(ids):
        state = states.get(job_id)
        if state is None:
            missed.append(f"there is no job {job_id}")
        elif state not in change.states:
            missed.append(f"job {job_id} is {state}")
        elif _change_one(jobs, change, job_id, actor):
            changed += 1
        else:
            missed.append(f"job {job_id} was left alone: {_WHY[change.name]}")
    click.echo(f"{change.name}: {plural(changed, 'job')}")
    if missed:
        raise JobsError("\n".join(missed))


def _change_one(jobs: Jobs[Any], change: Change, job_id: int, actor: str) -> bool:
    with changing(jobs, actor) as it:
        selection = Selection(ids=(job_id,))
        _, _, changed = change.batch(it.session, jobs.models, selection, after=job_id - 1, until=job_id)
        if changed:
            it.record(change.name, f"job {job_id}")
    return changed > 0


_BUSY = "somebody holds or has changed it, or the server refuses it and the log says why"
_WHY = {
    CANCEL.name: _BUSY,
    RETRY.name: f"its arguments were erased, another job that lives, or is newer, has its unique key, or {_BUSY}",
    ERASE.name: _BUSY,
    DELETE.name: f"rows of the application refer to it, or {_BUSY}",
}


def carry_out(jobs: Jobs[Any], change: Change, selection: Selection, actor: str, *, ask: bool) -> None:
    """Make the change, once somebody confirmed their number if they are to be asked, and tell what came of it."""
    meant = change.meant(selection)
    with jobs.binding().transaction() as session:
        by_state = change.count(session, jobs.models, meant)
        spared = change.count_spared(session, jobs.models, selection) if change.spares else {}
    if meant.half_searched:
        told = f"sensitive arguments of {', '.join(meant.half_searched)}, and what may repeat them, are not searched"
        click.echo(f"{told}: name such jobs by id or --task", err=True)
    if ask and by_state:
        click.confirm(f"{change.name} {counted(by_state)}?", abort=True, err=True)

    def record(session: Session, changed: int) -> None:
        said = meant.described(hidden=change.hidden(meant, jobs.tasks))
        Changing(session, jobs.models, jobs.tasks, actor).record(
            f"{change.name} many", plural(changed, "job"), filter=said
        )

    steps = change.in_batches(jobs.binding(), jobs.models, meant, record=record)
    done = _with_progress(change.name, steps, sum(by_state.values()))
    click.echo(f"{change.name}: {plural(done.changed, 'job')}")
    if done.left_alone:
        click.echo(f"{plural(done.left_alone, 'job')} left alone: {_WHY[change.name]}", err=True)
    if spared:
        click.echo(f"{counted(spared)} left alone: {change.name} them once they have ended, or cancel them", err=True)


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
            raise JobsError(f"interrupted: {plural(done.changed, 'job')} changed, the others not") from None
    return done


retry = _command(RETRY, "Queue jobs again that ended, or wait for their time.")
cancel = _command(CANCEL, "Cancel jobs that wait, and ask running ones to end.")
erase = _command(ERASE, "Erase arguments, results and errors of jobs that ended; the rows stay.")
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
