"""The command `worker`."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import click
from click.core import ParameterSource

from sqla_jobs.cli import option_types
from sqla_jobs.cli.naming import (
    ApplicationCommand,
    application_options,
    named_application,
    plain_errors,
    right_usage,
)
from sqla_jobs.database.shard_name import Where
from sqla_jobs.errors import ConfigurationError
from sqla_jobs.prometheus.source import check_installed
from sqla_jobs.rules.wording import plural
from sqla_jobs.runtime.logs import LogOptions
from sqla_jobs.runtime.settings import DEFAULTS, LeaseSettings, Settings, WorkerOptions
from sqla_jobs.supervisor.options import Application, ChildSpec, SupervisorOptions
from sqla_jobs.supervisor.reload import on_change
from sqla_jobs.supervisor.supervisor import Supervisor

log: logging.Logger = logging.getLogger("sqla_jobs.worker")


def _configured(given: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Return the command's options, with defaults from the application's config, such as Flask's SQLA_JOBS_QUEUES.

    An option given on the command line takes precedence.
    """
    context = click.get_current_context()
    options = {str(option.name): option for option in context.command.params}
    return given | {
        name: options[name].process_value(context, value)
        for name, value in defaults.items()
        if context.get_parameter_source(name) is ParameterSource.DEFAULT
    }


def parse_queues(text: str | None, concurrency: int) -> dict[str, int]:
    """Parse `mail=2,default=8`. A name without a number gets `concurrency`. Raises `ConfigurationError`."""
    queues: dict[str, int] = {}
    for item in ("default" if text is None else text).split(","):
        name, given, number = item.strip().partition("=")
        if name in queues:
            raise ConfigurationError(f"--queues {text}: {name!r} is named twice")
        if given and not re.fullmatch("[0-9]{1,6}", number):
            raise ConfigurationError(f"--queues {text}: {item!r} is not NAME or NAME=NUMBER")
        queues[name] = int(number) if given else concurrency
    return queues


def _setting(name: str, about: str) -> Callable[[Any], Any]:
    """Return the option for a setting, with the setting's default."""
    return click.option(f"--{name.replace('_', '-')}", default=DEFAULTS[name], show_default=True, help=about)


@click.command(cls=ApplicationCommand)
@application_options
@click.option("--queues", metavar="mail=2,default=8", help="Queues to serve, each with its number of concurrent jobs.")
@_setting("concurrency", "Concurrent jobs in each queue that is given without a number.")
@click.option("--processes", default=1, show_default=True, help="Processes; each serves all of the queues.")
@click.option("--drain", is_flag=True, help="Run the jobs that are due, then exit.")
@click.option("--clock/--no-clock", default=True, show_default=True, help="Enqueue the jobs of schedules, too.")
@click.option("--clock-only", is_flag=True, help="Run no jobs: enqueue the jobs of schedules, in one process.")
@click.option("--reload", is_flag=True, help="Restart when a Python file changes; for development.")
@_setting("heartbeat", "Seconds between heartbeats.")
@_setting("lease", "Seconds without a heartbeat after which a process counts as dead.")
@_setting("poll", "Seconds between polls, which find jobs whose notification was lost.")
@_setting("grace", "Seconds that running jobs have to end on SIGTERM.")
@_setting("kill_after", "Seconds after a job's timeout or `cancel --kill` until its process is killed.")
@click.option(
    "--hung-after",
    default=300.0,
    show_default=True,
    help="Seconds without progress after which a process is killed; 0: never.",
)
@click.option("--timeout", type=float, help="Timeout in seconds for tasks without one of their own.")
@click.option("--max-jobs", default=0, help="Replace a process after this many jobs; 0: never.")
@click.option(
    "--max-memory", default=0, metavar="MB", help="Replace a process that has used more memory than this; 0: never."
)
@_setting("slow_after", "Log the stack of a job that runs longer than this many seconds.")
@click.option(
    "--retention",
    metavar="succeeded=7d,failed=never,audit=90d",
    type=option_types.retention,
    default="",
    help="How long to keep rows. Defaults: ended jobs 7d, failed ones 30d, lines of the audit log 365d, ticks 30d.",
)
@click.option(
    "--metrics-port",
    metavar="[HOST:]PORT",
    help="Serve /metrics, /healthz and /readyz on this port, for all processes together.",
)
@click.option("--log-jobs", is_flag=True, help="Also log a line for each attempt that does not fail.")
@click.option("--log-level", default="INFO", show_default=True, help="DEBUG logs every job.")
@click.option(
    "--log-format",
    default="text",
    show_default=True,
    type=click.Choice(["text", "json"]),
    help="The format of log lines.",
)
def worker(application: str | None, drain: bool, clock_only: bool, reload: bool, **options: Any) -> None:
    """Run jobs until SIGTERM or SIGINT; a second signal ends immediately. SIGHUP restarts the processes one by one."""
    if clock_only:
        if drain or reload:
            raise click.UsageError("--clock-only runs no jobs: leave out --drain and --reload")
        _run_clock(application, **options)
        return
    with plain_errors():
        name = named_application(application)

    def plan(defaults: dict[str, Any]) -> tuple[ChildSpec, SupervisorOptions]:
        found = _configured(options, defaults)
        with right_usage():
            logs = _logs(**found)
            planned = _child_spec(found, logs, drain=drain), _supervision(reload=reload, **found)
            if options["metrics_port"] is None:
                _serve(found["metrics_port"], supervisor)
        logs.set_up(name)
        return planned

    with right_usage():
        logs = _logs(**options)
        until_then = _supervision(reload=reload, **options)
    logs.set_up(name)
    supervisor = Supervisor(Application(name, logs), plan, until_then)
    with right_usage():
        _serve(options["metrics_port"], supervisor)
    if reload:
        with plain_errors():
            on_change(supervisor.replace_all)
    code = supervisor.run()
    if drain and code == 0:
        click.echo(plural(supervisor.runs, "run"))
    sys.exit(code)


def _serve(metrics_port: str | None, supervisor: Supervisor) -> None:
    if metrics_port is not None:
        check_installed("--metrics-port")
        from sqla_jobs.prometheus.server import serve

        serve(metrics_port, supervisor.report)


def _logs(*, log_level: str, log_format: Literal["text", "json"], log_jobs: bool, **_: Any) -> LogOptions:
    return LogOptions(log_level, log_format, log_jobs)


def _supervision(
    *,
    processes: int,
    max_jobs: int,
    max_memory: int,
    kill_after: float,
    hung_after: float,
    reload: bool,
    **_: Any,
) -> SupervisorOptions:
    return SupervisorOptions(processes, max_jobs, max_memory * 2**20, kill_after, hung_after, reload)


def _child_spec(found: dict[str, Any], logs: LogOptions, *, drain: bool) -> ChildSpec:
    queues = parse_queues(found["queues"], found["concurrency"])
    settings = Settings.checked(queues, **{name: found[name] for name in WorkerOptions.__annotations__})
    is_observed = found["metrics_port"] is not None
    return ChildSpec(
        Where(found["urls"], found["shard"]), settings, drain, found["clock"], logs, is_observed=is_observed
    )


def _run_clock(application: str | None, **options: Any) -> None:
    with right_usage():
        logs = _logs(**options)
    with plain_errors():
        from sqla_jobs.clock.several import run_clocks
        from sqla_jobs.loading import bind_for_command_line, load_configured

        name = named_application(application)
        logs.set_up(name)
        jobs, defaults = load_configured(name)
        options = _configured(options, defaults)
        with right_usage():
            settings = LeaseSettings(options["heartbeat"], options["lease"])
            if _logs(**options) != logs:
                _logs(**options).set_up(name)
        jobs = bind_for_command_line(jobs, Where(options["urls"], options["shard"]))
        make = partial(jobs.clock, heartbeat=settings.heartbeat, lease=settings.lease)
        if jobs.shards:
            run_clocks({one: make(shard=one) for one in jobs.shards}, patience=settings.patience)
        else:
            make().run()
