"""Changes to jobs from the command line: one by one by their ids, or in batches by a filter."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import click
import sqlalchemy as sa
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sqla_jobs.actions.bulk_change import Change, counted
from sqla_jobs.actions.bulk_change import Progress as Done
from sqla_jobs.actions.jobs import Reschedule
from sqla_jobs.actions.selection import Selection
from sqla_jobs.cli.application import changing
from sqla_jobs.cli.output import console, print_table, shown
from sqla_jobs.errors import JobsError
from sqla_jobs.jobs import Jobs
from sqla_jobs.models.types import JobState
from sqla_jobs.monitoring.steps import read_awaited
from sqla_jobs.rules.wording import plural, they_are


@dataclass(frozen=True, slots=True)
class Wanted:
    """A change to make to at most `most` jobs."""

    change: Change
    most: int | None = None
    how: str = ""
    """The end of the confirmation question."""
    to_running: str = ""
    """The effect on running jobs, if it differs from the effect on the others."""
    is_for_many: bool = False
    """True if the change's options are allowed only with a filter or `--all`."""


def _print_running(wanted: Wanted, number: int) -> None:
    if wanted.to_running and number:
        click.echo(f"{they_are(number, 'running job')} {wanted.to_running}", err=True)


def carry_out_each(jobs: Jobs[Any], wanted: Wanted, ids: tuple[int, ...], actor: str, *, ask: bool) -> None:
    """Change the jobs with these ids one by one.

    Raises `JobsError` with a reason for each job that was not changed; the others stay changed.
    """
    change = wanted.change
    with jobs._binding().session() as session:
        rows = sa.select(jobs.Job.id, jobs.Job.state).where(jobs.Job.id.in_(ids))
        states: dict[int, JobState] = {row[0]: row[1] for row in session.execute(rows)}
    unusual = [job_id for job_id in ids if states.get(job_id) in set(change.states) - set(change.by_default)]
    if ask and unusual:
        note = ", ".join(f"job {job_id} is {states[job_id]}" for job_id in unusual)
        click.confirm(f"{note}: {change.name} anyway?", abort=True, err=True)
    changed, missed = list[JobState](), list[str]()
    for job_id in dict.fromkeys(ids):
        try:
            with changing(jobs, actor) as it:
                is_changed = change.one(it, job_id)
                signal = read_awaited(it.session, jobs, job_id) if isinstance(change, Reschedule) else None
        except JobsError as error:
            missed.append(str(error))
        else:
            if is_changed:
                changed.append(states[job_id])
                if signal is not None:
                    note = f"job {job_id} waits for the signal {signal!r:.200}: at that time it only looks for it"
                    click.echo(shown(note), err=True)
            else:
                missed.append(f"job {job_id} is {states[job_id]}")
    click.echo(f"{change.name}: {plural(len(changed), 'job')}")
    _print_running(wanted, changed.count(JobState.running))
    if missed:
        raise JobsError("\n".join(missed))


def preview(jobs: Jobs[Any], wanted: Wanted, selection: Selection) -> None:
    """Print how many jobs the change would affect, by day and error, without changing them."""
    change = wanted.change
    with jobs._binding().session() as session:
        parts = change.preview(session, jobs._models, change.meant(selection))
    print_table(
        ["DAY", "TASK", "STATE", "LAST ERROR", "JOBS"],
        [
            ("parked" if part.day == "infinity" else part.day, part.task, part.state, part.error_type, part.jobs)
            for part in parts
        ],
    )
    number = sum(part.jobs for part in parts)
    some = "" if wanted.most is None else f", the oldest {min(wanted.most, number):,} of them"
    click.echo(f"{change.name}: {plural(number, 'job')}{some}{wanted.how}; this is a dry run, nothing is changed")


def carry_out(jobs: Jobs[Any], wanted: Wanted, selection: Selection, actor: str, *, ask: bool) -> None:
    """Change the selected jobs in batches and print the result. With `ask`, first ask for confirmation."""
    change = wanted.change
    meant = change.meant(selection)
    with jobs._binding().session() as session:
        by_state = change.count(session, jobs._models, meant)
        spared = change.count(session, jobs._models, selection, spared=True) if change.spares else {}
    if meant.half_searched:
        note = f"sensitive arguments of {', '.join(meant.half_searched)}, and what may repeat them, are not searched"
        click.echo(f"{note}: select such jobs by id or --task", err=True)
    there = sum(by_state.values())
    number = there if wanted.most is None else min(there, wanted.most)
    some = f"the oldest {number:,} of " if number < there else ""
    if ask and by_state:
        click.confirm(f"{change.name} {some}{counted(by_state)}{wanted.how}?", abort=True, err=True)
    steps = change.for_many(number).in_batches(partial(changing, jobs, actor), meant, most=wanted.most)
    done = _with_progress(change.name, steps, number)
    click.echo(f"{change.name}: {plural(done.changed, 'job')}")
    _print_running(wanted, min(done.changed, by_state.get(JobState.running, 0)))
    if done.left_alone:
        with jobs._binding().session() as session:
            causes = change.causes(session, jobs._models, meant, done.left_alone)
        for count, cause in causes:
            click.echo(shown(f"{plural(count, 'job')} left alone: {cause}"), err=True)
    if spared:
        click.echo(f"{counted(spared)} left alone: {change.name} them once they have ended, or cancel them", err=True)


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
