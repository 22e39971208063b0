"""The commands `status` and `doctor`."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

import click

from sqla_jobs.cli.application import in_each_shard, on_application
from sqla_jobs.cli.naming import ApplicationCommand
from sqla_jobs.cli.output import as_json, print_json, print_problems, print_table, short, shown, till
from sqla_jobs.errors import JobsError
from sqla_jobs.jobs import Jobs
from sqla_jobs.monitoring.examine import examine
from sqla_jobs.monitoring.failures import Failures
from sqla_jobs.monitoring.finding import Verdict, brief
from sqla_jobs.monitoring.processes import ProcessStatus, read_freshest
from sqla_jobs.monitoring.status import Status, read_status
from sqla_jobs.rules.wording import NOTHING, duration, offset, percent, plural
from sqla_jobs.runtime.metrics import QueueStatus

_TIMEOUT = 5.0
"""Seconds to wait for the server's answer to `--exit-code`."""


@click.command(cls=ApplicationCommand)
@on_application
@click.option("--exit-code", is_flag=True, help="Show only whether a worker on this host is alive: exit with 0, or 1.")
@as_json
@in_each_shard
def status(jobs: Jobs[Any], exit_code: bool, as_json: bool) -> None:
    """Show queues, processes, failures and warnings."""
    if exit_code:
        _check_this_host(jobs)
        return
    with jobs._binding().session() as session:
        found = read_status(session, jobs)
    if as_json:
        print_json(found)
    else:
        _print_status(found)
    print_problems(found.warnings, stderr=True)


def _check_this_host(jobs: Jobs[Any]) -> None:
    """Print the age of the last heartbeat of a worker on this host. Raises `JobsError` if it is over half its lease."""
    host = socket.gethostname()
    with brief(jobs._binding(), jobs, _TIMEOUT) as session:
        freshest = read_freshest(session, jobs, host)
    if freshest is None:
        raise JobsError(f"no worker process of host {host} is registered: start one, or read its log")
    said = f"process {freshest.pid} stored a heartbeat {duration(freshest.age)} ago"
    if freshest.age >= freshest.lease / 2:
        raise JobsError(f"{said}, with a lease of {duration(freshest.lease)}: its log says why it sends none")
    click.echo(said)


def _print_status(status: Status) -> None:
    print_table(
        ["QUEUE", "QUEUED", "SCHEDULED", "BLOCKED", "RUNNING", "DONE/MIN", "OLDEST WAIT", ""],
        [
            (
                queue.name,
                queue.queued,
                queue.scheduled,
                queue.blocked,
                _running(queue.running, queue.claimed),
                queue.per_minute,
                duration(queue.oldest_wait),
                _paused(queue) if queue.paused else " ",
            )
            for queue in status.queues
        ],
    )
    if status.paused_tasks:
        click.echo()
        print_table(
            ["PAUSED TASK", "SINCE", "BY", "UNTIL", "REASON"],
            [
                (one.task, one.paused_at, one.paused_by, one.paused_until, one.pause_reason)
                for one in status.paused_tasks
            ],
        )
    click.echo()
    _print_processes(status.processes)
    _print_failures("RETRYING", status.retrying)
    _print_failures("FAILED TODAY", status.failures)


def _print_failures(heading: str, failures: Sequence[Failures]) -> None:
    if failures:
        click.echo()
        print_table(
            [heading, "SHARE", "ERROR", "JOBS", "LAST JOB", "MESSAGE"],
            [
                (one.task, percent(one.share), one.error_type, one.count, one.last_job_id, _first_line(one.last_error))
                for one in failures
            ],
        )


def _paused(queue: QueueStatus) -> str:
    by = f" by {queue.paused_by}" if queue.paused_by else ""
    why = f": {shown(queue.pause_reason)}" if queue.pause_reason else ""
    return f"paused {shown(queue.paused_at)}{by}{till(queue.paused_until)}{why}"


def _first_line(text: str | None) -> str:
    return ((text or "").strip().splitlines() or [""])[0][:200]


def _print_processes(processes: Sequence[ProcessStatus]) -> None:
    """Print the processes and, if there are any, their running jobs."""
    print_table(
        ["PROCESS", "KIND", "HOST", "PID", "LAST BEAT", "RUNNING", "LAST JOB ENDED", "CLOCK", "VERSION", "QUEUES"],
        [
            (
                short(process.id),
                process.kind,
                process.host,
                process.pid,
                f"{duration(process.beat_age)} ago{_how_it_is(process)}",
                _running(process.begun, process.claimed),
                NOTHING if process.idle is None else f"{duration(process.idle)} ago",
                offset(process.clock_offset),
                process.version,
                ",".join(f"{name}={number}" for name, number in process.queues.items()),
            )
            for process in processes
        ],
    )
    if any(process.running for process in processes):
        click.echo()
        print_table(
            ["RUNNING JOB", "TASK", "ATTEMPT", "FOR", "PROCESS"],
            [
                (job.job_id, job.task, job.attempt, duration(job.seconds), short(process.id))
                for process in processes
                for job in process.running
            ],
        )


def _how_it_is(process: ProcessStatus) -> str:
    if not process.alive:
        return ": dead"
    return "" if process.stalled is None else f": stalled for {duration(process.stalled)}"


def _running(begun: int, claimed: int) -> object:
    """Return the number of running jobs, and the number of jobs claimed ahead."""
    return f"{begun} (+{claimed} claimed)" if claimed else begun


@click.command(cls=ApplicationCommand)
@on_application
@click.option("--all", "lists_all", is_flag=True, help="List the checks that found no problem, too.")
@as_json
@in_each_shard
def doctor(jobs: Jobs[Any], lists_all: bool, as_json: bool) -> None:
    """Find out what makes a queue slow or stuck, with a remedy for each problem.

    Exits with 1 if any finding is an error.
    """
    jobs.tasks.load()
    with jobs._binding().session() as session:
        findings = examine(session, jobs)
    if as_json:
        print_json(findings)
    else:
        well = [one for one in findings if one.verdict is Verdict.ok]
        print_problems(one for one in findings if one.verdict is not Verdict.ok)
        click.echo()
        if lists_all:
            print_table(["", "ABOUT", "FOUND"], [(one.verdict, one.about, one.found) for one in well])
        else:
            click.echo(f"{plural(len(well), 'check')} {'is' if len(well) == 1 else 'are'} well: `--all` lists them")
    if any(one.verdict is Verdict.error for one in findings):
        click.get_current_context().exit(1)
