"""The commands `find`, `list`, `show` and `why`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Set
from dataclasses import asdict
from datetime import datetime
from typing import Any
from typing import cast as cast_type

import click
from sqlalchemy import Text, cast, inspect, select
from sqlalchemy.orm import defer

from sqla_jobs.actions.selection import Selection
from sqla_jobs.cli.application import on_application
from sqla_jobs.cli.naming import ApplicationCommand, right_usage
from sqla_jobs.cli.output import as_json, console, print_json, print_table, print_wrapped, remedy, short, shown
from sqla_jobs.cli.selecting import JOB_ID, check_batches, check_queues, check_tasks, selecting
from sqla_jobs.errors import ArgumentsError, UnknownJob
from sqla_jobs.jobs import Jobs
from sqla_jobs.models.columns import JobMixin, RunMixin
from sqla_jobs.models.types import PARKED, JobState
from sqla_jobs.monitoring import search
from sqla_jobs.monitoring.steps import StepRow, read_awaiting, read_steps
from sqla_jobs.queries.losses import lost_in_a_row
from sqla_jobs.rules.checks import check_text
from sqla_jobs.rules.redaction import Secrets, check_depth
from sqla_jobs.rules.wording import NOTHING, duration

_SUMMARY = 60
"""The maximum number of characters of an argument's value in the list of jobs."""


@click.command(cls=ApplicationCommand)
@on_application
@click.argument("words", metavar="TEXT")
@click.option(
    "--limit",
    default=20,
    show_default=True,
    type=click.IntRange(1, 10_000),
    help="Maximum number of results of each kind.",
)
@as_json
def find(jobs: Jobs[Any], words: str, limit: int, as_json: bool) -> None:
    """Search for TEXT in jobs, runs, schedules and the audit log.

    The search covers arguments, headers, progress, results and errors. Sensitive arguments are not searched.
    """
    jobs.tasks.load()
    with right_usage():
        if not check_text("TEXT", words).strip():
            raise ArgumentsError("TEXT is empty: give the text to search for")
    with jobs.binding().session() as session:
        places = [*search.find(session, jobs, words, limit)]
    if as_json:
        print_json(places)
        return
    print_table(
        ["WHERE", "JOB", "OF", "AT", "FOUND"],
        [(one.where, one.job_id or NOTHING, one.name, one.at, one.found) for one in places],
    )
    if hidden := jobs.tasks.sensitive():
        note = f"sensitive arguments of {', '.join(sorted(hidden))}, and what may repeat them, are not searched"
        click.echo(note, err=True)


@click.command("list", cls=ApplicationCommand)
@on_application
@selecting
@click.option(
    "--limit", default=50, show_default=True, type=click.IntRange(1, 1_000_000), help="Maximum number of jobs."
)
@click.option("--below", type=JOB_ID, metavar="ID", help="Only jobs with a smaller id, for the next page.")
@as_json
def list_jobs(jobs: Jobs[Any], selection: Selection, limit: int, below: int | None, as_json: bool) -> None:
    """List jobs, the newest first."""
    jobs.tasks.load()
    job = jobs.Job
    wanted = _jobs(jobs).where(*selection.where(jobs.models)).order_by(job.id.desc()).limit(limit + 1)
    if below is not None:
        wanted = wanted.where(job.id < below)
    with jobs.binding().session() as session:
        found = session.execute(wanted).all()
        rows = [_job(jobs, *one) for one in found[:limit]]
        awaiting = read_awaiting(session, jobs, [row["id"] for row in rows if row["run_at"] == PARKED])
    if not rows:
        check_tasks(jobs, selection.tasks)
        check_queues(jobs, selection.queues)
        check_batches(jobs, selection.batches)
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
                "waits for a signal" if row["id"] in awaiting else row[_MOMENTS.get(row["state"], "finished_at")],
                f"{row['attempt']}/{row['max_attempts']}",
                _summary(row["args"]),
            )
            for row in rows
        ],
    )
    if len(found) > limit:
        click.echo(f"There are more: raise --limit, or continue with --below {rows[-1]['id']}", err=True)


_MOMENTS = {JobState.scheduled: "run_at", JobState.queued: "run_at", JobState.running: "started_at"}


@click.command(cls=ApplicationCommand)
@on_application
@click.argument("job_id", metavar="ID", type=JOB_ID)
@as_json
def show(jobs: Jobs[Any], job_id: int, as_json: bool) -> None:
    """Show a job: its arguments, its steps, and every run with its error."""
    jobs.tasks.load()
    with jobs.binding().session() as session:
        counted = _jobs(jobs).add_columns(lost_in_a_row(jobs.models))
        found: Any = session.execute(counted.where(jobs.Job.id == job_id)).one_or_none()
        if found is None:
            raise UnknownJob(f"there is no job {job_id}; it may have been pruned")
        job, args, lost = found
        row = _job(jobs, job, args) | {"lost_in_a_row": None if job.max_lost is None else lost}
        secrets = jobs.tasks.secrets(job.task, args)
        stored: Any = session.execute(_runs(jobs).where(jobs.Run.job_id == job_id).order_by(jobs.Run.id))
        runs = [_as_dict(run, secrets, _OF_RUNS, result=_read(result)) for run, result in stored]
        steps = [_step(step, secrets) for step in read_steps(session, jobs, job_id)]
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
    _print_reasons(reasons)
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


@click.command(cls=ApplicationCommand)
@on_application
@click.argument("job_id", metavar="ID", type=JOB_ID)
@as_json
def why(jobs: Jobs[Any], job_id: int, as_json: bool) -> None:
    """Explain why a job is waiting."""
    jobs.tasks.load()
    with jobs.binding().session() as session:
        reasons = jobs.why(session, job_id)
    if as_json:
        print_json({"job_id": job_id, "why": reasons})
    else:
        _print_reasons(reasons)


def _print_reasons(reasons: Iterable[str]) -> None:
    for reason in reasons:
        print_wrapped(remedy(reason))


def _step(step: StepRow, secrets: Secrets) -> dict[str, Any]:
    """Return a step's values by name, without secrets in its result."""
    return asdict(step) | {"seconds": step.seconds, "result": secrets.json(_read(step.result))}


def _print_steps(steps: Iterable[dict[str, Any]]) -> None:
    rows = [
        (
            step["name"],
            step["kind"],
            step["run_id"],
            step["finished_at"] or "-",
            "-" if step["seconds"] is None else duration(step["seconds"]),
            step["until"] or "-",
            _cut(step["result"]),
        )
        for step in steps
    ]
    print_table(["STEP", "KIND", "RUN", "ENDED", "TOOK", "UNTIL", "RESULT"], rows)


def _cut(result: Any) -> str:
    return "-" if result is None else f"{json.dumps(result, ensure_ascii=False):.80}"


def _state(job: dict[str, Any]) -> str:
    """Return the job's state in one word; "cancelling" for a running job whose cancellation was requested."""
    is_cancelling = job["state"] == JobState.running and job["cancel_requested_at"] is not None
    return "cancelling" if is_cancelling else str(job["state"])


def _value(name: str, value: Any) -> object:
    if name == "process_id":
        return short(value)
    return value if isinstance(value, datetime) else str(value)


_OF_RUNS = frozenset({"result", "error", "traceback"})
_OF_JOBS = frozenset({"unique_key", "progress_message"})
"""Columns with free text from tasks and callers. The columns that a `job_class` adds are treated in the same way."""


def _jobs(jobs: Jobs[Any]) -> Any:
    """Select jobs, with their arguments as text, which is readable even if no JSON parser accepts it."""
    return select(jobs.Job, cast(jobs.Job.args, Text)).options(defer(jobs.Job.args))


def _runs(jobs: Jobs[Any]) -> Any:
    """Select runs, with their results as text."""
    return select(jobs.Run, cast(jobs.Run.result, Text)).options(defer(jobs.Run.result))


def _read(stored: str | None) -> Any:
    """Parse JSON; return the text itself if it is invalid or nested too deeply to be shown."""
    try:
        return None if stored is None else check_depth(json.loads(stored))
    except (ValueError, RecursionError):
        return stored


def _summary(args: Any) -> str:
    match args:
        case dict():
            return " ".join(f"{name}={_abridged(value)}" for name, value in cast_type("dict[str, Any]", args).items())
        case _:
            return _abridged(args)


def _abridged(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SUMMARY else f"{text[: _SUMMARY - 1]}…"


def _job(jobs: Jobs[Any], job: JobMixin, stored: str) -> dict[str, Any]:
    own = {attribute.key for attribute in inspect(jobs.Job).column_attrs} - {*JobMixin.__annotations__, "position"}
    args = _read(stored)
    seen = jobs.tasks.shown(job.task, cast_type("dict[str, Any]", args)) if isinstance(args, dict) else args
    return _as_dict(job, jobs.tasks.secrets(job.task, stored), _OF_JOBS | own, args=seen)


def _as_dict(row: JobMixin | RunMixin, secrets: Secrets, free: Set[str], **read: Any) -> dict[str, Any]:
    """Return the row's columns by name. `read` replaces stored values; secrets in the `free` columns are withheld."""
    mapper: Any = inspect(type(row))
    names = [attribute.key for attribute in mapper.column_attrs]
    values = {name: read[name] if name in read else getattr(row, name) for name in names}
    return {name: secrets.json(value) if name in free else value for name, value in values.items()}
