"""The first page: an overview of queues, failures and warnings."""

from __future__ import annotations

from flask import Response, request
from werkzeug.wrappers import Response as AnyResponse

from sqla_jobs.actions import pausing
from sqla_jobs.dashboard.data.statistics import SPANS, read_statistics
from sqla_jobs.dashboard.render import chart
from sqla_jobs.dashboard.site import Dashboard
from sqla_jobs.dashboard.views.jobs_list import state_counts
from sqla_jobs.monitoring.examine import problems
from sqla_jobs.monitoring.paused import names_of, read_paused_tasks
from sqla_jobs.monitoring.queues import read_work


def show(site: Dashboard) -> Response:
    """GET /"""
    span = SPANS.get(request.args.get("span", ""), SPANS["hour"])
    jobs = site.jobs
    with site.reading() as (session, now):
        queues, processes = read_work(session, jobs)
        figures = read_statistics(session, jobs, span, now)
        found = problems(session, jobs)
        counts = state_counts(session, jobs)
        paused_tasks = read_paused_tasks(session, jobs)
    groups = [(group, site.shown(group.task, group.args_text).beginning(group.error)) for group in figures.groups]
    return site.render(
        "overview.html",
        now,
        span=span,
        spans=SPANS.values(),
        counts=counts,
        queues=queues,
        running=sum(queue.running for queue in queues),
        claimed=sum(queue.claimed for queue in queues),
        processes=processes,
        figures=figures,
        groups=groups,
        problems=found,
        paused_tasks=paused_tasks,
        paused_names=names_of(paused_tasks),
        known_tasks=jobs.tasks,
        charts=[
            chart.throughput(figures),
            chart.latency(figures, "wait", "Wait before start", lambda bucket: bucket.wait),
            chart.latency(figures, "run", "Run time", lambda bucket: bucket.run),
        ],
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
