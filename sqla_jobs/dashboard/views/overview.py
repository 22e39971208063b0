"""The first page: an overview of queues, failures and warnings."""

from __future__ import annotations

from flask import Response, request
from werkzeug.wrappers import Response as AnyResponse

from sqla_jobs.actions import pausing
from sqla_jobs.dashboard.data.listing import count_states
from sqla_jobs.dashboard.data.runs import SPANS, bucket_of, read_figures, read_period
from sqla_jobs.dashboard.render.chart import charts
from sqla_jobs.dashboard.site import Dashboard
from sqla_jobs.monitoring.examine import problems
from sqla_jobs.monitoring.failures import read_failures, read_retrying
from sqla_jobs.monitoring.queues import names_of, read_paused_tasks, read_work

_SHOWN = 50
_FAILURES = 5_000
"""The maximum number of failed runs that are read, and as many of jobs that are retried."""


def show(site: Dashboard) -> Response:
    """GET /"""
    span = SPANS.get(request.args.get("span", ""), SPANS["hour"])
    jobs = site.jobs
    with site.reading() as (session, now):
        queues, processes = read_work(session, jobs)
        period = read_period(session, jobs, span, now)
        whole, by_bucket = read_figures(session, jobs, period, lambda runs: bucket_of(runs, period))
        failures = read_failures(session, jobs, within=span.length, most=_FAILURES)
        retrying = read_retrying(session, jobs, most=_FAILURES)
        paused_tasks = read_paused_tasks(session, jobs)
        return site.render(
            "overview.html",
            now,
            span=span,
            spans=SPANS.values(),
            counts=count_states(session, jobs),
            queues=queues,
            running=sum(queue.running for queue in queues),
            claimed=sum(queue.claimed for queue in queues),
            processes=processes,
            period=period,
            whole=whole,
            groups=[*failures, *retrying][:_SHOWN],
            problems=problems(session, jobs),
            paused_tasks=paused_tasks,
            paused_names=names_of(paused_tasks),
            known_tasks=jobs.tasks,
            charts=charts(period, whole, by_bucket),
        )


def pause(site: Dashboard) -> AnyResponse:
    """POST /queues/pause and /tasks/pause"""
    with site.changing() as it:
        pausing.pause(it, request.form.get("queue"), task=request.form.get("task"))
    return site.done("paused", "overview")


def resume(site: Dashboard) -> AnyResponse:
    """POST /queues/resume and /tasks/resume"""
    with site.changing() as it:
        pausing.resume(it, request.form.get("queue"), task=request.form.get("task"))
    return site.done("resumed", "overview")
