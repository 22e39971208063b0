"""The commands `batch list`, `batch show`, `batch cancel` and `batch retry`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
import sqlalchemy as sa

from sqla_jobs.actions import batches as actions
from sqla_jobs.cli.application import audited, changing, on_application
from sqla_jobs.cli.naming import ApplicationCommand
from sqla_jobs.cli.output import as_json, print_json, print_table, shown
from sqla_jobs.cli.selecting import JOB_ID
from sqla_jobs.jobs import Jobs
from sqla_jobs.monitoring.batches import BatchStatus, read_batch, read_batches
from sqla_jobs.monitoring.prerequisites import titled
from sqla_jobs.queries.expressions import last_run_of
from sqla_jobs.rules.wording import NOTHING, duration, percent, plural

_LISTED = 20
"""The maximum number of failed jobs, and of jobs after the batch, that `batch show` lists."""


@click.group()
def batch() -> None:
    """List, cancel and retry batches."""


@batch.command("list", cls=ApplicationCommand)
@on_application
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 1000), help="Maximum number of batches.")
@click.option("--below", type=JOB_ID, metavar="ID", help="Only batches with a smaller id, for the next page.")
@as_json
def list_batches(jobs: Jobs[Any], limit: int, below: int | None, as_json: bool) -> None:
    """List batches, the newest first."""
    with jobs._binding().session() as session:
        found = read_batches(session, jobs, limit + 1, below=below)
    if as_json:
        print_json([_as_dict(one) for one in found[:limit]])
        return
    print_table(
        ["ID", "NAME", "MADE", "ENDED", "PROGRESS", "FAILED", "CANCELLED", "TIME LEFT"],
        [
            (
                one.id,
                one.name,
                one.created_at,
                f"{one.counts.ended:,} of {one.counts.total:,}",
                percent(one.counts.progress),
                one.counts.failed,
                one.counts.cancelled,
                _left(one),
            )
            for one in found[:limit]
        ],
    )
    if len(found) > limit:
        click.echo(f"There are more: raise --limit, or continue with --below {found[limit - 1].id}", err=True)


@batch.command("show", cls=ApplicationCommand)
@on_application
@click.argument("batch_id", metavar="ID", type=JOB_ID)
@as_json
def show(jobs: Jobs[Any], batch_id: int, as_json: bool) -> None:
    """Show a batch: the number of its jobs in each state, its last failed jobs, and the jobs after it."""
    jobs.tasks.load()
    with jobs._binding().session() as session:
        one = read_batch(session, jobs, batch_id)
        failed, after = _last_failed(session, jobs, batch_id), _jobs_after(session, jobs, batch_id)
    if as_json:
        print_json(_as_dict(one) | {"failed_jobs": failed, "jobs_after": after})
        return
    print_table(["BATCH", str(one.id)], _facts(one))
    if failed:
        click.echo()
        rows = [(row["id"], row["task"], row["finished_at"], _error(row)) for row in failed]
        print_table(["FAILED JOB", "TASK", "AT", "LAST ERROR"], rows)
    if after:
        click.echo()
        print_table(["JOB AFTER IT", "TASK", "STATE"], [(row["id"], row["task"], row["state"]) for row in after])


def _facts(one: BatchStatus) -> Iterator[tuple[str, object]]:
    yield "name", one.name
    yield "made", one.created_at
    yield (
        "progress",
        (f"{one.counts.ended:,} of {plural(one.counts.total, 'job')} ended ({percent(one.counts.progress)})"),
    )
    if not one.counts.has_ended:
        yield "time left", _left(one)
    if one.closed_at is not None:
        yield "finished", one.closed_at
    yield from ((state, f"{number:,}") for state, number in one.kinds)


def _last_failed(session: Any, jobs: Jobs[Any], batch_id: int) -> list[dict[str, Any]]:
    job, run = jobs.Job, jobs.Run
    columns = (job.id, job.task, job.finished_at, run.error_type, run.error, sa.cast(job.args, sa.Text).label("args"))
    failed = (
        sa.select(*columns)
        .outerjoin(run, run.id == last_run_of(run, job.id))
        .where(job.batch_id == batch_id, job.state == "failed")
    )
    rows = [dict(row) for row in session.execute(failed.order_by(job.id.desc()).limit(_LISTED)).mappings()]
    for row in rows:
        row["error"] = jobs.tasks.secrets(row["task"], row.pop("args")).text(row["error"] or "")
    return rows


def _error(row: dict[str, Any]) -> str:
    first = row["error"].partition("\n")[0]
    return f"{row['error_type']}: {first:.200}" if row["error_type"] else NOTHING


def _jobs_after(session: Any, jobs: Jobs[Any], batch_id: int) -> list[dict[str, Any]]:
    job, edge = jobs.Job, jobs.Edge
    after = sa.select(job.id, job.task, job.state).join(edge, edge.job_id == job.id).where(edge.batch_id == batch_id)
    return [dict(row) for row in session.execute(after.order_by(job.id).limit(_LISTED)).mappings()]


def _left(one: BatchStatus) -> str:
    if one.counts.has_ended or one.counts.seconds_left is None:
        return NOTHING
    return f"about {duration(one.counts.seconds_left)}"


def _as_dict(one: BatchStatus) -> dict[str, Any]:
    counts = one.counts
    named = {"total": counts.total, "ended": counts.ended, "progress": counts.progress}
    seconds_left = 0.0 if counts.has_ended else counts.seconds_left
    states = {name: getattr(counts, name) for name in counts.__slots__ if name != "age"}
    times = {"created_at": one.created_at, "closed_at": one.closed_at}
    return {"id": one.id, "name": one.name, **times, **named, "seconds_left": seconds_left, "states": states}


@batch.command("cancel", cls=ApplicationCommand)
@on_application
@click.argument("batch_id", metavar="ID", type=JOB_ID)
@click.option("--kill", is_flag=True, help="Kill the processes of jobs that do not stop.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@audited
def cancel(jobs: Jobs[Any], actor: str, batch_id: int, kill: bool, yes: bool) -> None:
    """Cancel all live jobs of a batch: waiting ones end, and running ones are asked to end."""
    one = _read(jobs, batch_id)
    live = one.counts.total - one.counts.ended
    if live and not yes:
        click.confirm(f"cancel {plural(live, 'job')} of the {shown(titled(one.id, one.name))}?", abort=True, err=True)
    with changing(jobs, actor) as it:
        number = actions.cancel(it, actions.get(it, batch_id), kill=kill)
    click.echo(f"cancel: {plural(number, 'job')}")


@batch.command("retry", cls=ApplicationCommand)
@on_application
@click.argument("batch_id", metavar="ID", type=JOB_ID)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@audited
def retry(jobs: Jobs[Any], actor: str, batch_id: int, yes: bool) -> None:
    """Retry the jobs of a batch that failed or were cancelled.

    Jobs that were cancelled because one of these jobs had failed wait for it again.
    """
    one = _read(jobs, batch_id)
    lost = one.counts.failed + one.counts.cancelled
    if lost and not yes:
        click.confirm(
            f"retry the {shown(titled(one.id, one.name))}: {one.counts.failed:,} failed, {one.counts.cancelled:,} "
            "cancelled?",
            abort=True,
            err=True,
        )
    with changing(jobs, actor) as it:
        number = actions.retry(it, actions.get(it, batch_id))
    click.echo(f"retry: {plural(number, 'job')}")


def _read(jobs: Jobs[Any], batch_id: int) -> BatchStatus:
    with jobs._binding().session() as session:
        return read_batch(session, jobs, batch_id)
