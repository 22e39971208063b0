"""The page of one job."""

from __future__ import annotations

from typing import Any

from flask import Response, request
from sqlalchemy import Text, cast, select
from sqlalchemy.orm import Session

from sqla_jobs.dashboard.data.names import read_names
from sqla_jobs.dashboard.data.workflow import read_after, read_batch_of, read_before, read_workflow
from sqla_jobs.dashboard.render import timeline as story
from sqla_jobs.dashboard.render.graph import graph
from sqla_jobs.dashboard.shown import Shown
from sqla_jobs.dashboard.site import Dashboard
from sqla_jobs.errors import UnknownJob
from sqla_jobs.jobs import Jobs
from sqla_jobs.models.columns import JobMixin
from sqla_jobs.models.types import ENDED, LIVE, NOT_RUNNING, WAITING, JobState
from sqla_jobs.monitoring.finding import ask
from sqla_jobs.monitoring.steps import StepRow, read_steps
from sqla_jobs.queries.limits import keeps_others_waiting
from sqla_jobs.queries.losses import lost_in_a_row
from sqla_jobs.rules.checks import read_id

_RUNS = 20
_LONG = 100_000
"""The maximum length of arguments, results and other texts on a page."""


def show(site: Dashboard, job_id: int) -> Response:
    """GET /jobs/<id>"""
    jobs, before = site.jobs, request.args.get("before", type=read_id)
    with site.reading() as (session, now):
        job = _job(session, jobs, job_id)
        shown = site.shown(job.task, job.args_text)
        runs = _runs(session, jobs, job_id, before)
        keeps_key = _keeps_key(session, jobs, job_id)
        steps = read_steps(session, jobs, job_id)
        after, before_it = (
            read_after(session, jobs, job_id),
            read_before(session, jobs, job_id, job.batch_id),
        )
        workflow = None if after.is_empty and before_it.is_empty else read_workflow(session, jobs, job_id)
        schedule = session.get(jobs.Schedule, job.schedule_id) if job.schedule_id is not None else None
        session.expunge_all()
        return site.render(
            "job.html",
            now,
            job=job,
            shown=shown,
            arguments=_cut(shown.pretty),
            runs=[_Run(run, shown) for run in runs[:_RUNS]],
            steps=[_Step(step, shown) for step in steps],
            awaited=next((step.awaited for step in steps if step.awaited and job.state in WAITING), None),
            older=runs[_RUNS - 1].id if len(runs) > _RUNS else None,
            is_first_page=before is None,
            schedule=schedule,
            duplicates=_duplicates(session, jobs, job),
            names=read_names(session, jobs) if job.state in WAITING else None,
            process=_process(session, jobs, job.process_id),
            timeline=story.timeline(job, runs[:_RUNS][::-1], is_whole=len(runs) <= _RUNS and before is None),
            is_known=job.task in jobs.tasks,
            reasons=jobs.why(session, job_id) if _has_reasons(job) or keeps_key else [],
            keeps_key=keeps_key,
            is_blocked=job.state == JobState.blocked,
            batch=read_batch_of(session, jobs, job.batch_id),
            after=after,
            before=before_it,
            graph=workflow and graph(workflow, job_id),
            is_whole=workflow is None or workflow.is_whole,
            is_ended=job.state in ENDED,
            is_waiting=job.state in WAITING,
            is_live=job.state in LIVE,
            progress_message=shown.text(job.progress_message),
            unique_key=shown.text(job.unique_key),
            key_url=_key_url(site, job),
            extras=_own_columns(jobs, job, shown),
        )


class _Run:
    """An attempt, without sensitive values."""

    def __init__(self, row: Any, shown: Shown) -> None:
        self.row = row
        self.seconds = max(0.0, (row.finished_at - row.started_at).total_seconds())
        self.error = shown.text(row.error)
        self.traceback = shown.text(row.traceback)
        self.result = None if row.result_text is None else _cut(shown.json(row.result_text))


class _Step:
    """A step, without sensitive values."""

    def __init__(self, row: StepRow, shown: Shown) -> None:
        self.row = row
        self.result = None if row.result is None else _cut(shown.json(row.result))


def _has_reasons(job: Any) -> bool:
    """Return whether `why` can say more about the job's state than the page shows anyway."""
    is_stopped = job.state == JobState.cancelled and job.waits_for is not None
    return is_stopped or job.state in NOT_RUNNING


def _key_url(site: Dashboard, job: Any) -> str:
    """Return the URL of the jobs with the same unique key.

    If nobody may search for the task's keys, return the URL of the task's jobs instead.
    """
    is_hidden = job.task in site.jobs.tasks.sensitive()
    return site.url("jobs", task=job.task) if is_hidden else site.url("jobs", key=job.unique_key)


def _cut(text: str) -> str:
    return text if len(text) <= _LONG else f"{text[:_LONG]}\n… {len(text) - _LONG:,} more characters"


def _job(session: Session, jobs: Jobs[Any], job_id: int) -> Any:
    job: Any = jobs.Job
    stored = [column for column in job.__table__.c if column.name != "args"]
    more = cast(job.args, Text).label("args_text"), lost_in_a_row(jobs.models).label("lost_in_a_row")
    query = select(*stored, *more).where(job.id == job_id)
    row = ask(session, jobs, query).one_or_none()
    if row is None:
        raise UnknownJob(f"There is no job {job_id}. It may have been deleted, or pruned some time after it ended.")
    return row


def _own_columns(jobs: Jobs[Any], job: Any, shown: Shown) -> list[tuple[str, str]]:
    """Return the columns that an application's job class adds, if they have a value."""
    table: Any = jobs.Job.__table__
    own = [column.name for column in table.c if column.name not in {*JobMixin.__annotations__, "position"}]
    values = {name: value for name in own if (value := job._mapping[name]) is not None}
    return [(name, _cut(shown.text(str(value)) or "")) for name, value in values.items()]


def _runs(session: Session, jobs: Jobs[Any], job_id: int, before: int | None) -> list[Any]:
    """Return the newest runs, one more than a page shows. Results are text, which keeps every digit."""
    run: Any = jobs.Run
    columns = [column for column in run.__table__.c if column.name != "result"]
    query = (
        select(*columns, cast(run.result, Text).label("result_text"), jobs.Process.host, jobs.Process.pid)
        .outerjoin(jobs.Process, jobs.Process.id == run.process_id)
        .where(run.job_id == job_id)
    )
    if before is not None:
        query = query.where(run.id < before)
    return list(ask(session, jobs, query.order_by(run.id.desc()).limit(_RUNS + 1)))


def _keeps_key(session: Session, jobs: Jobs[Any], job_id: int) -> bool:
    """Return whether the job failed, and the next jobs of its ordered key have to wait because of it."""
    query = select(keeps_others_waiting(jobs.models)).where(jobs.Job.id == job_id)
    return bool(ask(session, jobs, query).scalar())


def _process(session: Session, jobs: Jobs[Any], process_id: Any) -> Any:
    process: Any = jobs.Process
    if process_id is None:
        return None
    return ask(session, jobs, select(process.host, process.pid).where(process.id == process_id)).one_or_none()


def _duplicates(session: Session, jobs: Jobs[Any], job: Any) -> Any:
    """Return another live job with the same unique key, if there is one."""
    if job.unique_key is None:
        return None
    other: Any = jobs.Job
    same = (other.unique_key == job.unique_key, other.id != job.id, other.state.in_(LIVE))
    return ask(session, jobs, select(other.id, other.state).where(*same)).first()
