"""The page of one job."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from flask import Response, request
from sqlalchemy.orm import Session

from sqla_jobs.actions.action import ACTIONS
from sqla_jobs.dashboard.data.names import read_names
from sqla_jobs.dashboard.data.workflow import read_after, read_before, read_workflow
from sqla_jobs.dashboard.render.graph import graph
from sqla_jobs.dashboard.site import Dashboard
from sqla_jobs.dashboard.views.changes import offered
from sqla_jobs.jobs import Jobs
from sqla_jobs.models.types import NOT_RUNNING, WAITING, JobState
from sqla_jobs.monitoring.batches import read_batch
from sqla_jobs.monitoring.finding import ask
from sqla_jobs.monitoring.steps import read_steps
from sqla_jobs.monitoring.without_secrets import read_job, read_runs
from sqla_jobs.queries.limits import keeps_others_waiting
from sqla_jobs.rules.value_checks import read_id

_RUNS = 20


def show(site: Dashboard, job_id: int) -> Response:
    """GET /jobs/<id>"""
    jobs, before = site.jobs, request.args.get("before", type=read_id)
    with site.reading() as (session, now):
        one = read_job(session, jobs, job_id)
        job, shown = one.row, one.shown
        runs = read_runs(session, jobs, one, most=_RUNS + 1, before=before)
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
            runs=runs[:_RUNS],
            steps=[(step, shown.json(step.result)) for step in steps],
            awaited=next((step.awaited for step in steps if step.awaited and job.state in WAITING), None),
            older=runs[_RUNS - 1].row.id if len(runs) > _RUNS else None,
            is_first_page=before is None,
            schedule=schedule,
            names=read_names(session, jobs) if job.state in WAITING else None,
            process=_process(session, jobs, job.process_id),
            is_known=job.task in jobs.tasks,
            reasons=jobs.why(session, job_id) if _has_reasons(job) or keeps_key else [],
            keeps_key=keeps_key,
            is_blocked=job.state == JobState.blocked,
            batch=None if job.batch_id is None else read_batch(session, jobs, job.batch_id),
            after=after,
            before=before_it,
            graph=workflow and graph(workflow, job_id),
            is_whole=workflow is None or workflow.is_whole,
            offered=offered(job.state) + ([ACTIONS["cancel"]] if keeps_key else []),
            is_waiting=job.state in WAITING,
            progress_message=one.progress_message,
            unique_key=one.unique_key,
            extras=[(name, str(value)) for name, value in one.own.items() if value is not None],
        )


def _has_reasons(job: Any) -> bool:
    """Return whether `why` can say more about the job's state than the page shows anyway."""
    is_stopped = job.state == JobState.cancelled and job.waits_for is not None
    return is_stopped or job.state in NOT_RUNNING


def _keeps_key(session: Session, jobs: Jobs[Any], job_id: int) -> bool:
    """Return whether the job failed, and the next jobs of its ordered key have to wait because of it."""
    query = sa.select(keeps_others_waiting(jobs._models)).where(jobs.Job.id == job_id)
    return bool(ask(session, jobs, query).scalar())


def _process(session: Session, jobs: Jobs[Any], process_id: Any) -> Any:
    process: Any = jobs.Process
    if process_id is None:
        return None
    return ask(session, jobs, sa.select(process.host, process.pid).where(process.id == process_id)).one_or_none()
