"""Jobs, runs and schedules as people see them: without sensitive values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqla_jobs.errors import UnknownJob
from sqla_jobs.jobs import Jobs
from sqla_jobs.models.columns import JobMixin
from sqla_jobs.monitoring.finding import ask, readable
from sqla_jobs.rules import json_text
from sqla_jobs.rules.redaction import ERASED, HIDDEN, NOTHING, Secrets, is_erased, parse

READ = 2_000
"""The maximum number of characters read from an error whose beginning is shown."""
_SAID = 300
_MAY_BE_CUT = 200
"""How many characters are dropped from the end of a cut text. A secret that was cut there may not be recognized."""


@dataclass(frozen=True)
class Shown:
    """The arguments of one job without sensitive values; `None` if they are not a JSON object."""

    args: dict[str, Any] | None
    secrets: Secrets
    withheld: frozenset[str]
    """The names of arguments that are hidden."""
    instead: str = ""
    """The text to show for arguments that are not a JSON object."""

    @property
    def is_erased(self) -> bool:
        """True if the arguments were erased."""
        return self.instead == ERASED

    def text(self, text: str | None) -> str | None:
        """Return `text` without secrets."""
        return None if text is None else self.secrets.text(text)

    def beginning(self, text: str) -> str:
        """Return the beginning of `text`, without secrets. The query read at most `READ` characters of the text."""
        said = self.secrets.text(text)
        return (said[:-_MAY_BE_CUT] if len(text) >= READ else said)[:_SAID]

    def json(self, text: str | None) -> str | None:
        """Return JSON on several lines, without secrets."""
        if text is None:
            return None
        try:
            return json_text.pretty(self.secrets.json(json_text.parse(text)))
        except (ValueError, RecursionError):
            return self.secrets.text(text)

    @property
    def pretty(self) -> str:
        """The arguments, on several lines."""
        return self.instead if self.args is None else json_text.pretty(self.args)

    @property
    def summary(self) -> str:
        """The arguments on one line, as in a call, at most 160 characters."""
        if self.args is None:
            said = self.instead
        else:
            said = ", ".join(f"{name}={json_text.compact(value)}" for name, value in self.args.items())
        return said if len(said) <= 160 else f"{said[:159]}…"


def without_secrets(jobs: Jobs[Any], task: str, args: str) -> Shown:
    """Return the stored arguments of a job of `task` for people. The arguments of an unknown task are unchanged."""
    secrets = jobs.tasks.secrets(task, args)
    values = parse(args)
    if is_erased(values):
        return Shown(None, secrets, frozenset(), ERASED)
    if not isinstance(values, dict):
        text = values if isinstance(values, str) else json_text.pretty(values)
        return Shown(None, secrets, frozenset(), text if secrets is NOTHING else HIDDEN)
    values = cast("dict[str, Any]", values)
    seen = jobs.tasks.shown(task, values)
    return Shown(seen, secrets, frozenset(name for name, value in values.items() if seen[name] != value))


@dataclass(frozen=True, slots=True)
class ShownJob:
    """A job. `row` has the stored columns, and the arguments as `args_text`, with their secrets."""

    row: Any
    shown: Shown
    unique_key: str | None
    progress_message: str | None
    own: dict[str, Any]
    """The columns that the application's job class adds."""


@dataclass(frozen=True, slots=True)
class ShownRun:
    """A run. `row` has the stored columns except the result, with their secrets."""

    row: Any
    error: str | None
    traceback: str | None
    result: str | None
    """JSON on several lines."""

    @property
    def seconds(self) -> float:
        """How long the run took."""
        return max(0.0, float((self.row.finished_at - self.row.started_at).total_seconds()))


def read_jobs(session: Session, jobs: Jobs[Any], *where: Any, most: int) -> list[ShownJob]:
    """Return the jobs that match all conditions, the newest first."""
    job: Any = jobs.Job
    columns = [*_without(job, "args"), sa.cast(job.args, sa.Text).label("args_text")]
    query = sa.select(*columns).where(*where).order_by(job.id.desc()).limit(most)
    return [_job(jobs, row) for row in ask(session, jobs, query)]


def _job(jobs: Jobs[Any], row: Any) -> ShownJob:
    it = without_secrets(jobs, row.task, row.args_text)
    names = [one.key for one in sa.inspect(jobs.Job).column_attrs]
    own = {name: row._mapping[name] for name in names if name not in {*JobMixin.__annotations__, "position"}}
    own = {name: it.secrets.json(value) for name, value in own.items()}
    return ShownJob(row, it, it.text(row.unique_key), it.text(row.progress_message), own)


def read_job(session: Session, jobs: Jobs[Any], job_id: int) -> ShownJob:
    """Return a job. Raises `UnknownJob`."""
    found = read_jobs(session, jobs, jobs.Job.id == job_id, most=1)
    if not found:
        raise UnknownJob(f"there is no job {job_id}; it may have been deleted, or pruned some time after it ended")
    return found[0]


def read_runs(
    session: Session, jobs: Jobs[Any], job: ShownJob, *, most: int | None = None, before: int | None = None
) -> list[ShownRun]:
    """Return the runs of a job, the newest first. With `before`, return only runs with a smaller id.

    `row` has the host and the pid of the run's process, too, as long as its row exists.
    """
    run: Any = jobs.Run
    columns = [*_without(run, "result"), sa.cast(run.result, sa.Text).label("result_text")]
    query = sa.select(*columns, jobs.Process.host, jobs.Process.pid).where(run.job_id == job.row.id)
    query = query.outerjoin(jobs.Process, jobs.Process.id == run.process_id)
    if before is not None:
        query = query.where(run.id < before)
    rows = ask(session, jobs, query.order_by(run.id.desc()).limit(most))
    it = job.shown
    return [ShownRun(row, it.text(row.error), it.text(row.traceback), it.json(row.result_text)) for row in rows]


@dataclass(frozen=True, slots=True)
class ShownSchedule:
    """A schedule. `row` has the stored columns, and the arguments as `args_text`, with their secrets."""

    row: Any
    shown: Shown
    disabled_reason: str | None


def read_schedules(session: Session, jobs: Jobs[Any], *where: Any, most: int | None = None) -> list[ShownSchedule]:
    """Return the schedules that match all conditions, by name, without their declared values."""
    schedule: Any = jobs.Schedule
    columns = [*_without(schedule, "args", "declared_values"), sa.cast(schedule.args, sa.Text).label("args_text")]
    found: list[ShownSchedule] = []
    for row in ask(session, jobs, sa.select(*columns).where(*where).order_by(schedule.name).limit(most)):
        it = without_secrets(jobs, row.task, row.args_text)
        found.append(ShownSchedule(row, it, it.text(row.disabled_reason)))
    return found


def _without(model: Any, *left_out: str) -> list[Any]:
    """Return the mapped columns except some, which no JSON parser has to accept: they are read as text, or not."""
    return [readable(getattr(model, one.key)) for one in sa.inspect(model).column_attrs if one.key not in left_out]
