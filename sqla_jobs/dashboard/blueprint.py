"""The blueprint: the pages' URLs, the checks before each request, and the headers set after it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from flask import Blueprint, Response, abort, g, redirect, request, url_for
from sqlalchemy.exc import DBAPIError
from werkzeug.exceptions import HTTPException

from sqla_jobs.actions.schedules import UnknownSchedule
from sqla_jobs.dashboard.access import HEADERS, Actor, Authorize, Role, check_functions, check_origin, role_of
from sqla_jobs.dashboard.site import Dashboard, blueprint_of
from sqla_jobs.dashboard.views import (
    audit,
    batches,
    changes,
    job,
    jobs_list,
    limits,
    overview,
    processes,
    schedules,
    tasks,
)
from sqla_jobs.database.explain import explain
from sqla_jobs.errors import ConfigurationError, JobsError, UnknownJob
from sqla_jobs.jobs import Jobs
from sqla_jobs.rules.value_checks import MAX_ID

View = Callable[..., Any]
_STATIC = "/sqla_jobs_static"
"""The path of the static files. It is not /static, which is the application's own folder if the prefix is /."""

PAGES: tuple[tuple[str, str, str, View], ...] = (
    ("GET", "/", "overview", overview.show),
    ("POST", "/queues/pause", "pause", overview.pause),
    ("POST", "/queues/resume", "resume", overview.resume),
    ("GET", "/jobs", "jobs", jobs_list.show),
    ("POST", "/tasks/pause", "pause_task", overview.pause),
    ("POST", "/tasks/resume", "resume_task", overview.resume),
    ("POST", "/jobs/change", "bulk", changes.confirm),
    ("POST", "/jobs/change/run", "bulk_run", changes.run),
    ("GET", "/jobs/<int:job_id>", "job", job.show),
    ("POST", "/jobs/<int:job_id>/signal", "signal_job", changes.signal),
    ("POST", "/jobs/<int:job_id>/<action>", "change_job", changes.change_one),
    ("GET", "/batches", "batches", batches.show_all),
    ("GET", "/batches/<int:batch_id>", "batch", batches.show),
    ("GET", "/schedules", "schedules", schedules.show_all),
    ("GET", "/schedules/new", "new_schedule", schedules.new),
    ("POST", "/schedules/new", "add_schedule", schedules.add),
    ("GET", "/schedules/<int:schedule_id>", "schedule", schedules.show),
    ("GET", "/schedules/<int:schedule_id>/edit", "edit_schedule", schedules.edit),
    ("POST", "/schedules/<int:schedule_id>/edit", "save_schedule", schedules.save),
    ("POST", "/schedules/<int:schedule_id>/<action>", "change_schedule", schedules.change),
    ("GET", "/limits", "limits", limits.show),
    ("GET", "/limits/set", "edit_limit", limits.edit),
    ("POST", "/limits/set", "save_limit", limits.save),
    ("POST", "/limits/clear", "clear_limit", limits.clear),
    ("GET", "/tasks", "tasks", tasks.show),
    ("GET", "/processes", "processes", processes.show),
    ("GET", "/audit", "audit", audit.show),
)


def create_blueprint(
    jobs: Jobs[Any], *, authorize: Authorize, actor: Actor | None = None, name: str = "sqla_jobs"
) -> Blueprint:
    """Return a dashboard over `jobs`, to be registered on a Flask application under a `url_prefix` of its own.

    If `jobs` is bound to several databases, each of them has its own pages, below its name.

    - `jobs`: the `Jobs`.
    - `authorize`: a function that is called before every page, and returns a `Role`, or None to refuse the visitor.
    - `actor`: a function that returns the visitor's name for the audit log.
    - `name`: the name of the blueprint. A second dashboard in one application needs another name.

    Raises `ConfigurationError` if `authorize` is not a function, and if `authorize` or `actor` is a coroutine function.
    """
    check_functions(authorize, actor)
    if not jobs.shards:
        return _blueprint_of(Dashboard(jobs, authorize, actor), name)

    def index() -> Any:
        if role_of(authorize) is None:
            abort(403)
        return redirect(url_for(f".{blueprint_of(0)}.overview"))

    made = Blueprint(name, __name__)
    made.add_url_rule("/", "overview", index)
    for number, shard in enumerate(jobs.shards):
        site = Dashboard(jobs.shard(shard), authorize, actor, shards=jobs.shards, shard=shard)
        made.register_blueprint(_blueprint_of(site, blueprint_of(number)), url_prefix=f"/{shard}")
    return made


def _blueprint_of(site: Dashboard, name: str) -> Blueprint:
    made = Blueprint(name, __name__, static_folder="static", static_url_path=_STATIC)
    made.before_request(partial(_before, site))
    made.after_request(_after)
    made.register_error_handler(HTTPException, partial(_refused, site))
    made.register_error_handler(JobsError, partial(_impossible, site))
    made.register_error_handler(DBAPIError, partial(_database, site))
    for method, path, endpoint, view in PAGES:
        made.add_url_rule(path, endpoint, partial(view, site), methods=[method])
    return made


def _is_static() -> bool:
    return (request.endpoint or "").endswith(".static")


def _before(site: Dashboard) -> None:
    if _is_static():
        return
    role = role_of(site.authorize)
    if role is None:
        abort(403, "You may not see this dashboard. Whoever runs the application can let you in.")
    g.sqla_jobs_role = role
    if any(isinstance(value, int) and value > MAX_ID for value in (request.view_args or {}).values()):
        abort(404, f"There is nothing of that number: ids go up to {MAX_ID}.")
    if request.method in ("GET", "HEAD", "OPTIONS"):
        return
    if role is not Role.operator:
        abort(403, "You may look at this dashboard, and not change anything: that takes the role of an operator.")
    check_origin()


def _after(response: Response) -> Response:
    response.headers.update(HEADERS)
    if not _is_static():
        response.headers["Cache-Control"] = "no-store"
    return response


def _refused(site: Dashboard, error: HTTPException) -> Any:
    if error.code is None or error.code < 400:  # a redirect that authorize raised, such as to a login page
        return error
    return site.render("error.html", None, error.code, title=error.name, message=error.description)


def _impossible(site: Dashboard, error: JobsError) -> Any:
    if isinstance(error, UnknownJob | UnknownSchedule):
        return site.render("error.html", None, 404, title="Not found", message=str(error))
    if isinstance(error, ConfigurationError):
        raise error
    return site.render("error.html", None, 409, title="That was not possible", message=str(error))


def _database(site: Dashboard, error: DBAPIError) -> Any:
    if getattr(error.orig, "sqlstate", None) == "57014":
        said = "The database took too long for this page. Narrow the filter, or try again when it has less to do."
    else:
        said = explain(error).capitalize()
    return site.render("error.html", None, 503, title="The database did not answer as it should", message=said)
