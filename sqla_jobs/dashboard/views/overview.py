"""The first page: how everything stands."""

from __future__ import annotations

from flask import Response, request
from werkzeug.wrappers import Response as AnyResponse

from sqla_jobs.actions import pausing
from sqla_jobs.dashboard.data.statistics import SPANS, read_figures
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
        figures = read_figures(session, jobs, span, now)
        found = problems(session, jobs, queues, processes)
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
    """POST /queues/pause"""
    queue = request.form.get("queue", "")
    with site.changing() as changing:
        pausing.pause(changing.session, site.jobs.models, queue)
        changing.record("pause", f"queue {queue}")
    return site.go(site.url("overview"), f"Queue {queue} is paused: what runs goes on, nothing new starts.")


def resume(site: Dashboard) -> AnyResponse:
    """POST /queues/resume"""
    queue = request.form.get("queue", "")
    with site.changing() as changing:
        if pausing.resume(changing.session, site.jobs.models, queue):
            changing.record("resume", f"queue {queue}")
    return site.go(site.url("overview"), f"Queue {queue} goes on.")


def pause_task(site: Dashboard) -> AnyResponse:
    """POST /tasks/pause"""
    with site.changing() as changing:
        task = pausing.pause_task(changing.session, site.jobs.models, site.jobs.tasks, request.form.get("task", ""))
        changing.record("pause", f"task {task}")
    return site.go(site.back(site.url("overview")), f"Task {task} is paused: what runs goes on, nothing new starts.")


def resume_task(site: Dashboard) -> AnyResponse:
    """POST /tasks/resume"""
    task = request.form.get("task", "")
    with site.changing() as changing:
        if pausing.resume_task(changing.session, site.jobs.models, site.jobs.tasks, task):
            changing.record("resume", f"task {task}")
    return site.go(site.back(site.url("overview")), f"Task {task} goes on.")
