"""The commands `retry`, `cancel`, `erase`, `delete`, `move`, `reschedule`, `enqueue` and `signal`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import click

from sqla_jobs.actions import batches, signals
from sqla_jobs.actions.audit import Changing
from sqla_jobs.actions.jobs import Cancel, Delete, Erase, Move, Reschedule, Retry
from sqla_jobs.actions.selection import Selection
from sqla_jobs.cli import durations
from sqla_jobs.cli.application import audited, changing, on_application
from sqla_jobs.cli.changing import Wanted, carry_out, carry_out_each, preview
from sqla_jobs.cli.naming import ApplicationCommand, output_on_stderr, right_usage
from sqla_jobs.cli.output import shown
from sqla_jobs.cli.selecting import JOB_ID, check_batches, check_queue, check_queues, check_tasks, selecting
from sqla_jobs.errors import ArgumentsError, JobsError, UnknownJob
from sqla_jobs.jobs import Jobs
from sqla_jobs.models.columns import JobMixin
from sqla_jobs.models.types import IfFailed
from sqla_jobs.monitoring.steps import kept
from sqla_jobs.rules.value_checks import check_seconds, check_text
from sqla_jobs.rules.wording import duration

_Options = list[Callable[[Any], Any]]


def _command(name: str, help: str, options: _Options, wanted: Callable[..., Wanted]) -> click.Command:  # noqa: A002
    """Return a command that makes the change `wanted(jobs, yes, **options)` to jobs given by ids or by a filter."""

    @on_application
    @click.argument("ids", metavar="[ID]...", nargs=-1, type=JOB_ID)
    @click.option("--all", "everything", is_flag=True, help="Select all jobs.")
    @click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
    @click.option("--dry-run", is_flag=True, help="Change nothing; print how many jobs would change, by day and error.")
    @selecting
    @audited
    def run(
        jobs: Jobs[Any],
        actor: str,
        selection: Selection,
        ids: tuple[int, ...],
        everything: bool,
        yes: bool,
        dry_run: bool,
        **given: Any,
    ) -> None:
        if ids and (everything or not selection.is_everything):
            raise click.UsageError("ids, filters and --all exclude each other: give one of them")
        if not ids and selection.is_everything != everything:
            raise click.UsageError("no jobs are selected: give ids, a filter such as --state failed, or --all")
        try:
            what = wanted(jobs, yes, **given)
        except ArgumentsError as wrong:
            raise click.UsageError(str(wrong)) from None
        if ids and what.is_for_many:
            raise click.UsageError("--limit and --over need a filter or --all: leave them out, or give no ids")
        if not ids:
            check_tasks(jobs, selection.tasks)
            check_queues(jobs, selection.queues)
            check_batches(jobs, selection.batches)
        if dry_run:
            preview(jobs, what, Selection(ids=ids) if ids else selection)
        elif ids:
            carry_out_each(jobs, what, ids, actor, ask=not yes)
        else:
            carry_out(jobs, what, selection, actor, ask=not yes)

    for option in reversed(options):
        run = option(run)
    return click.command(name, cls=ApplicationCommand, help=help)(run)


def _retry(jobs: Jobs[Any], yes: bool, limit: int | None, over: timedelta | None) -> Wanted:
    if over is None:
        return Wanted(Retry(), most=limit, is_for_many=limit is not None)
    how = f", spread over {duration(check_seconds('--over', over))}"
    return Wanted(Retry(over), most=limit, how=how, is_for_many=True)


def _cancel(jobs: Jobs[Any], yes: bool, kill: bool, reason: str | None) -> Wanted:
    change = Cancel(kill, None if reason is None else check_text("--reason", reason))
    if kill:
        how = ", and kill the processes of those that do not stop"
        return Wanted(change, how=how, to_running="asked to end; if a job does not, its process is killed")
    return Wanted(change, to_running="asked to end; with --kill, the process of a job that does not is killed")


def _move(jobs: Jobs[Any], yes: bool, to: str | None, priority: int | None) -> Wanted:
    if to is None and priority is None:
        raise click.UsageError("no target is given: give --to QUEUE, --priority N, or both")
    change = Move(to, priority)
    if to is not None and not yes:
        with jobs._binding().session() as session:
            check_queue(jobs, session, to, "; --yes moves jobs there all the same")
    where = [*([f"queue {to}"] if to else []), *([f"priority {priority}"] if priority is not None else [])]
    return Wanted(change, how=f" to {' and '.join(where)}")


def _reschedule(jobs: Jobs[Any], yes: bool, at: datetime | None, within: timedelta | None) -> Wanted:
    run_at = at or within
    if run_at is None or (at and within):
        raise click.UsageError("give the new time: either --at MOMENT or --in TIME")
    when = f"{duration(run_at.total_seconds())} from now" if isinstance(run_at, timedelta) else shown(run_at)
    return Wanted(Reschedule(run_at), how=f" to {when}")


_LIMIT = click.option("--limit", type=click.IntRange(1), metavar="N", help="At most N jobs, the oldest first.")
_OVER = durations.duration_option("--over", "over", "Spread the retries evenly over this time, the oldest first.")
_KILL = click.option(
    "--kill", is_flag=True, help="Kill the process of a job that does not stop within the worker's --kill-after."
)
_REASON = click.option("--reason", help="The reason, for the audit log and for `why`.")
_TO = click.option("--to", metavar="QUEUE", help="The new queue; jobs go to its end. An unknown queue needs --yes.")
_PRIORITY = click.option("--priority", type=int, help="The new priority, from -10 to 10; lower runs first.")
_AT = click.option("--at", metavar="MOMENT", callback=durations.moment, help="The new time: 2026-03-29T14:30, in UTC.")
_IN = durations.duration_option("--in", "within", "The new time, from now: 90s, 15m, 12h, 7d.")

retry: click.Command = _command("retry", "Queue ended, scheduled or blocked jobs.", [_LIMIT, _OVER], _retry)
cancel: click.Command = _command(
    "cancel", "Cancel waiting jobs, and ask running ones to end.", [_KILL, _REASON], _cancel
)
erase: click.Command = _command(
    "erase", "Erase arguments, results and errors of ended jobs.", [], lambda *_: Wanted(Erase())
)
delete: click.Command = _command(
    "delete", "Delete jobs that are not running, with their runs.", [], lambda *_: Wanted(Delete())
)
move: click.Command = _command("move", "Move waiting jobs to another queue or priority.", [_TO, _PRIORITY], _move)
reschedule: click.Command = _command("reschedule", "Change the due time of waiting jobs.", [_AT, _IN], _reschedule)


@click.command(cls=ApplicationCommand)
@on_application
@click.argument("task")
@click.argument("arguments", metavar="JSON", default="{}")
@click.option("--queue")
@click.option("--priority", type=int, help="From -10 to 10, lower runs first.")
@durations.duration_option("--delay", "delay", "Time until the job is due: 90s, 15m, 12h, 7d.")
@click.option("--max-attempts", type=int)
@click.option("--max-lost", type=int, help="Lost runs in a row that end the job; they then use no attempt.")
@click.option("--unique-key", help="A key that at most one live job has.")
@click.option("--after", "after", multiple=True, type=JOB_ID, metavar="ID", help="Run after this job; repeatable.")
@click.option(
    *("--after-batch", "after_batches"),
    multiple=True,
    type=JOB_ID,
    metavar="ID",
    help="Run after all jobs of this batch; repeatable.",
)
@click.option("--if-failed", type=click.Choice([*IfFailed]), help="What to do if a job before it fails.")
@click.option("--batch", "batch_id", type=JOB_ID, metavar="ID", help="The batch that the job joins.")
@click.option("--yes", is_flag=True, help="Accept a queue that no job, worker or task of the application uses.")
@audited
def enqueue(
    jobs: Jobs[Any],
    /,
    actor: str,
    task: str,
    arguments: str,
    yes: bool,
    after: tuple[int, ...],
    after_batches: tuple[int, ...],
    batch_id: int | None,
    **given: Any,
) -> None:
    """Enqueue TASK with arguments in a JSON object, and print the job's id."""
    options = {name: value for name, value in given.items() if value is not None}
    if "if_failed" in options and not after and not after_batches:
        raise click.UsageError("--if-failed needs --after or --after-batch: the jobs or batches that may fail")
    with output_on_stderr():
        wanted = jobs.tasks[task]
    codec = wanted._declaration.codec
    with changing(jobs, actor) as it:
        if "queue" in options and not yes:
            check_queue(jobs, it.session, options["queue"], "; --yes enqueues there all the same")
        if after or after_batches:
            options["after"] = [*(_job(it, one) for one in after), *(batches.get(it, one) for one in after_batches)]
        if batch_id is not None:
            options["batch"] = batches.get(it, batch_id)
        with right_usage():
            decoded = codec.load(it.session, codec.decode(arguments))
            job: JobMixin = wanted.options(**options).enqueue(it.session, **decoded)
        it.session.flush()
        it.record("enqueue", f"job {job.id}", task=job.task)
        job_id = job.id
    click.echo(job_id)


def _job(it: Changing, job_id: int) -> JobMixin:
    found: JobMixin | None = it.session.get(it.models.Job, job_id)
    if found is None:
        raise UnknownJob(f"there is no job {job_id}; it may have been pruned")
    return found


@click.command(cls=ApplicationCommand)
@on_application
@click.argument("job_id", metavar="ID", type=JOB_ID)
@click.argument("name")
@click.argument("payload", metavar="JSON", default="null")
@audited
def signal(jobs: Jobs[Any], actor: str, job_id: int, name: str, payload: str) -> None:
    """Send a signal to a job, which receives it by run.wait_for.

    JSON is its payload, such as '{"by": "ada"}'. A job that waits for the signal is queued; otherwise the signal is
    kept until the job asks for it.
    """
    with right_usage():
        value = signals.read_payload(payload)
    with changing(jobs, actor) as it:
        if not signals.send(it, job_id, name, value):
            raise JobsError(f"job {job_id} has ended, and receives no signal")
        is_kept = kept(it.session, jobs, job_id, name)
    click.echo(shown(is_kept or f"job {job_id} has the signal {name}"))
