"""Changing jobs from the command line: those named by ids one by one, those of a filter in batches."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sqlalchemy import select
from sqlalchemy.orm import Session

from sqla_jobs.actions.audit import Changing
from sqla_jobs.actions.bulk import BUSY, Change, Kind, counted
from sqla_jobs.actions.bulk import Progress as Done
from sqla_jobs.actions.selection import Selection
from sqla_jobs.cli.application import changing
from sqla_jobs.cli.output import console, print_table, shown
from sqla_jobs.errors import JobsError
from sqla_jobs.jobs import Jobs
from sqla_jobs.models.types import JobState
from sqla_jobs.rules.wording import plural, they_are

_PATIENCE, _AGAIN = 1.0, 0.1
"""Seconds for which a named job is tried, and between two tries."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a person wants to have done: `change` makes it, told how many jobs there are, of `most` of them."""

    kind: Kind
    change: Callable[[int], Change]
    most: int | None = None
    how: str = ""
    """Ends the question whether to do it."""
    to_running: str = ""
    """What becomes of those that run, if it takes more than the change."""
    is_for_many: bool = False
    """Whether it says something about several jobs, and nothing about one."""


def always(change: Change, how: str = "", *, to_running: str = "") -> Wanted:
    """A change that is the same for any number of jobs."""
    return Wanted(change.kind, lambda number: change, how=how, to_running=to_running)


def _tell_of_running(wanted: Wanted, number: int) -> None:
    if wanted.to_running and number:
        click.echo(f"{they_are(number, 'running job')} {wanted.to_running}", err=True)


def carry_out_each(jobs: Jobs[Any], wanted: Wanted, ids: tuple[int, ...], actor: str, *, ask: bool) -> None:
    """Of jobs named one by one each that is not changed is told, with the reason; raises `JobsError` then."""
    kind, change = wanted.kind, wanted.change(1)
    with jobs.binding().transaction() as session:
        rows = select(jobs.Job.id, jobs.Job.state).where(jobs.Job.id.in_(ids))
        states: dict[int, JobState] = {row[0]: row[1] for row in session.execute(rows)}
    unusual = [job_id for job_id in ids if states.get(job_id) in set(kind.states) - set(kind.by_default)]
    if ask and unusual:
        told = ", ".join(f"job {job_id} is {states[job_id]}" for job_id in unusual)
        click.confirm(f"{told}: {kind.name} all the same?", abort=True, err=True)
    changed, missed = list[JobState](), list[str]()
    for job_id in dict.fromkeys(ids):
        state = states.get(job_id)
        if state is None:
            missed.append(f"there is no job {job_id}")
        elif (state in kind.states or kind.also is not None) and _change_soon(jobs, change, job_id, actor):
            changed.append(state)
        elif state not in kind.states:
            missed.append(f"job {job_id} is {state}")
        else:
            with jobs.binding().transaction() as session:
                missed.append(f"job {job_id} was left alone: {kind.reason(session, jobs.models, job_id)}")
    click.echo(f"{kind.name}: {plural(len(changed), 'job')}")
    _tell_of_running(wanted, changed.count(JobState.running))
    if missed:
        raise JobsError("\n".join(missed))


def _change_soon(jobs: Jobs[Any], change: Change, job_id: int, actor: str) -> bool:
    """Try again for a second if somebody has the row, as a worker does for a moment when it claims the job."""
    deadline = time.monotonic() + _PATIENCE
    while not (is_changed := _change_one(jobs, change, job_id, actor)) and time.monotonic() < deadline:
        with jobs.binding().transaction() as session:
            if change.kind.reason(session, jobs.models, job_id) != BUSY:
                break
        time.sleep(_AGAIN)
    return is_changed


def _change_one(jobs: Jobs[Any], change: Change, job_id: int, actor: str) -> bool:
    with changing(jobs, actor) as it:
        selection = Selection(ids=(job_id,))
        _, _, changed = change.batch(it.session, jobs.models, selection, after=job_id - 1, until=job_id)
        if changed:
            it.record(change.kind.name, f"job {job_id}", **change.details)
    return changed > 0


def tell_only(jobs: Jobs[Any], wanted: Wanted, selection: Selection) -> None:
    """Change nothing, and say of which jobs the change would be made, by day and error."""
    kind = wanted.kind
    with jobs.binding().transaction() as session:
        parts = kind.preview(session, jobs.models, kind.meant(selection))
    print_table(
        ["DAY", "TASK", "STATE", "LAST ERROR", "JOBS"],
        [
            ("parked" if part.day == "infinity" else part.day, part.task, part.state, part.error_type, part.jobs)
            for part in parts
        ],
    )
    number = sum(part.jobs for part in parts)
    some = "" if wanted.most is None else f", the oldest {min(wanted.most, number):,} of them"
    click.echo(f"{kind.name}: {plural(number, 'job')}{some}{wanted.how}; nothing is changed, since this is a dry run")


def carry_out(jobs: Jobs[Any], wanted: Wanted, selection: Selection, actor: str, *, ask: bool) -> None:
    """Make the change, once somebody confirmed their number if they are to be asked, and tell what came of it."""
    kind = wanted.kind
    meant = kind.meant(selection)
    with jobs.binding().transaction() as session:
        by_state = kind.count(session, jobs.models, meant)
        spared = kind.count_spared(session, jobs.models, selection) if kind.spares else {}
    if meant.half_searched:
        told = f"sensitive arguments of {', '.join(meant.half_searched)}, and what may repeat them, are not searched"
        click.echo(f"{told}: name such jobs by id or --task", err=True)
    there = sum(by_state.values())
    number = there if wanted.most is None else min(there, wanted.most)
    some = f"the oldest {number:,} of " if number < there else ""
    if ask and by_state:
        click.confirm(f"{kind.name} {some}{counted(by_state)}{wanted.how}?", abort=True, err=True)
    change = wanted.change(number)

    def record(session: Session, changed: int) -> None:
        said = meant.described(hidden=kind.hidden(meant, jobs.tasks))
        Changing(session, jobs.models, jobs.tasks, actor).record(
            f"{kind.name} many", plural(changed, "job"), filter=said, **change.details
        )

    steps = change.in_batches(jobs.binding(), jobs.models, meant, most=wanted.most, record=record)
    done = _with_progress(kind.name, steps, number)
    click.echo(f"{kind.name}: {plural(done.changed, 'job')}")
    _tell_of_running(wanted, min(done.changed, by_state.get(JobState.running, 0)))
    if done.left_alone:
        with jobs.binding().transaction() as session:
            causes = kind.causes(session, jobs.models, meant, done.left_alone)
        for count, cause in causes:
            click.echo(shown(f"{plural(count, 'job')} left alone: {cause}"), err=True)
    if spared:
        click.echo(f"{counted(spared)} left alone: {kind.name} them once they have ended, or cancel them", err=True)


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
