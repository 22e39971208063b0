"""The commands `list`, `show` and `audit`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

import click
import sqlalchemy as sa

from sqla_jobs.actions.selection import by_server
from sqla_jobs.cli.application import on_application
from sqla_jobs.cli.naming import ApplicationCommand, right_usage
from sqla_jobs.cli.option_types import moment
from sqla_jobs.cli.output import (
    as_json,
    console,
    plain_json,
    print_json,
    print_table,
    print_wrapped,
    remedy,
    short,
    shown,
)
from sqla_jobs.cli.selecting import JOB_ID, filter_options, half_searched, selection_in
from sqla_jobs.jobs import Jobs
from sqla_jobs.models.types import JobState
from sqla_jobs.monitoring.steps import StepRow, read_steps
from sqla_jobs.monitoring.without_secrets import Shown, ShownJob, ShownRun, read_job, read_jobs, read_runs
from sqla_jobs.rules.value_checks import check_text
from sqla_jobs.rules.wording import duration


@click.command("list", cls=ApplicationCommand)
@on_application
@filter_options
@click.option(
    "--limit", default=50, show_default=True, type=click.IntRange(1, 1_000_000), help="Maximum number of jobs."
)
@as_json
def list_jobs(jobs: Jobs[Any], limit: int, as_json: bool, **given: Any) -> None:
    """List jobs, the newest first."""
    jobs.tasks.load()
    selection = selection_in(jobs, given)
    with jobs._binding().session() as session:
        found = read_jobs(session, jobs, *selection.where(jobs._models), most=limit + 1)
        rows = [_job(jobs, one) for one in found[:limit]]
    if as_json:
        print_json(rows)
        return
    print_table(
        ["ID", "TASK", "QUEUE", "STATE", "SINCE, OR DUE", "ATTEMPT", "ARGUMENTS"],
        [
            (
                row["id"],
                row["task"],
                row["queue"],
                _state(row),
                row[_MOMENTS.get(row["state"], "finished_at")],
                f"{row['attempt']}/{row['max_attempts']}",
                one.shown.summary,
            )
            for one, row in zip(found, rows, strict=False)
        ],
    )
    if selection.half_searched:
        click.echo(half_searched(selection), err=True)
    if len(found) > limit:
        click.echo("There are more: raise --limit", err=True)


_MOMENTS = {JobState.scheduled: "run_at", JobState.queued: "run_at", JobState.running: "started_at"}


@click.command(cls=ApplicationCommand)
@on_application
@click.argument("job_id", metavar="ID", type=JOB_ID)
@as_json
def show(jobs: Jobs[Any], job_id: int, as_json: bool) -> None:
    """Show a job: its arguments, its steps, and every run with its error."""
    jobs.tasks.load()
    with jobs._binding().session() as session:
        job = read_job(session, jobs, job_id)
        row = _job(jobs, job)
        runs = [_run(jobs, run) for run in reversed(read_runs(session, jobs, job))]
        steps = [_step(step, job.shown) for step in read_steps(session, jobs, job_id)]
        reasons = jobs.why(session, job_id)
    if as_json:
        print_json(row | {"runs": runs, "steps": steps, "why": reasons})
        return
    arguments = row.pop("args")
    said = row | {"state": _state(row)}
    print_table(
        ["JOB", str(job_id)], [(name, _value(name, value)) for name, value in said.items() if value is not None]
    )
    click.echo()
    for reason in reasons:
        print_wrapped(remedy(reason))
    click.echo("\narguments")
    console().print_json(data=arguments)
    if steps:
        click.echo()
        _print_steps(steps)
    for run in runs:
        took = (run["finished_at"] - run["started_at"]).total_seconds()
        click.echo(
            f"\nattempt {run['attempt']}: {run['outcome']} at {shown(run['finished_at'])}, after {duration(took)}, "
            f"in process {short(run['process_id']) or '-'}, run {run['id']}"
        )
        if run["result"] is not None:
            console().print_json(data=run["result"])
        if run["error"] is not None:
            click.echo(shown(run["traceback"] or f"{run['error_type']}: {run['error']}").rstrip())


def _step(step: StepRow, it: Shown) -> dict[str, Any]:
    """Return a step's values by name, without secrets in its result."""
    return asdict(step) | {"seconds": step.seconds, "result": plain_json(it.json(step.result))}


def _print_steps(steps: Iterable[dict[str, Any]]) -> None:
    rows = [
        (
            step["name"],
            step["kind"],
            step["run_id"],
            step["finished_at"] or "-",
            "-" if step["seconds"] is None else duration(step["seconds"]),
            step["until"] or "-",
            "-" if step["result"] is None else f"{json.dumps(step['result'], ensure_ascii=False):.80}",
        )
        for step in steps
    ]
    print_table(["STEP", "KIND", "RUN", "ENDED", "TOOK", "UNTIL", "RESULT"], rows)


def _state(job: dict[str, Any]) -> str:
    """Return the job's state in one word; "cancelling" for a running job whose cancellation was requested."""
    is_cancelling = job["state"] == JobState.running and job["cancel_requested_at"] is not None
    return "cancelling" if is_cancelling else str(job["state"])


def _value(name: str, value: Any) -> object:
    if name == "process_id":
        return short(value)
    return value if isinstance(value, datetime) else str(value)


def _job(jobs: Jobs[Any], job: ShownJob) -> dict[str, Any]:
    """Return the columns by name, in the order of the table, with the arguments as JSON."""
    args = plain_json(job.row.args_text if job.shown.is_erased else job.shown.pretty)
    texts = {"unique_key": job.unique_key, "progress_message": job.progress_message}
    return _columns(jobs.Job, job.row, {"args": args} | texts | job.own)


def _run(jobs: Jobs[Any], run: ShownRun) -> dict[str, Any]:
    read = {"error": run.error, "traceback": run.traceback, "result": plain_json(run.result)}
    return _columns(jobs.Run, run.row, read)


def _columns(model: Any, row: Any, read: dict[str, Any]) -> dict[str, Any]:
    """Return the columns by name. `read` has those that are not as stored."""
    names = [one.key for one in sa.inspect(model).column_attrs]
    return {name: read[name] if name in read else row._mapping[name] for name in names}


@click.command(cls=ApplicationCommand)
@on_application
@click.option("--actor", metavar="TEXT", help="Part of the actor's name.")
@click.option("--action", metavar="TEXT", help="An action, such as retry, or the beginning of one.")
@click.option("--subject", metavar="TEXT", help="Part of the subject's name, such as 'job 17' or mail.send.")
@click.option(
    "--newer-than",
    "after",
    metavar="TIME",
    type=moment,
    help="Made after this time, such as 7d (7 days ago) or 2026-03-29T14:30.",
)
@click.option("--older-than", "before", metavar="TIME", type=moment, help="Made before this time.")
@click.option(
    "--limit", default=50, show_default=True, type=click.IntRange(1, 1_000_000), help="Maximum number of lines."
)
@as_json
def audit(
    jobs: Jobs[Any],
    actor: str | None,
    action: str | None,
    subject: str | None,
    after: datetime | timedelta | None,
    before: datetime | timedelta | None,
    limit: int,
    as_json: bool,
) -> None:
    """List changes made from the command line or the dashboard, the newest first."""
    line: Any = jobs.Audit
    wanted = sa.select(*line.__table__.c).order_by(line.id.desc()).limit(limit + 1)
    with right_usage():
        for column, words in ((line.actor, actor), (line.subject, subject)):
            if words is not None:
                wanted = wanted.where(column.icontains(check_text("the text", words), autoescape=True))
        if action is not None:
            wanted = wanted.where(line.action.istartswith(check_text("the action", action), autoescape=True))
    if after is not None:
        wanted = wanted.where(line.at >= by_server(after))
    if before is not None:
        wanted = wanted.where(line.at < by_server(before))
    with jobs._binding().session() as session:
        found = session.execute(wanted, bind_arguments={"mapper": line}).mappings().all()
    rows = [dict(one) for one in found[:limit]]
    if as_json:
        print_json(rows)
        return
    print_table(
        ["ID", "AT", "ACTOR", "ACTION", "SUBJECT", "DETAILS"],
        [
            (*(row[name] for name in ("id", "at", "actor", "action", "subject")), _details(row["details"]))
            for row in rows
        ],
    )
    if len(found) > limit:
        click.echo("There are more: raise --limit", err=True)


def _details(details: dict[str, Any]) -> str:
    """Return details as text: `filter={"tasks": ["mail.send"]} kill=true`."""
    shown = {name: value if isinstance(value, str) else json.dumps(value) for name, value in details.items()}
    return " ".join(f"{name}={value}" for name, value in shown.items())
