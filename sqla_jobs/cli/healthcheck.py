"""The command `healthcheck`."""

from __future__ import annotations

import socket
from typing import Any

import click

from sqla_jobs.cli.application import in_each_shard, on_application
from sqla_jobs.cli.naming import ApplicationCommand
from sqla_jobs.errors import JobsError
from sqla_jobs.jobs import Jobs
from sqla_jobs.monitoring.finding import brief
from sqla_jobs.monitoring.processes import read_freshest
from sqla_jobs.rules.wording import duration

_TIMEOUT = 5.0
"""Seconds to wait for the server's answer."""


@click.command(cls=ApplicationCommand)
@on_application
@in_each_shard
def healthcheck(jobs: Jobs[Any]) -> None:
    """Check that a worker on this host is alive.

    Exits with 0 if one has stored a heartbeat within half its lease, else with 1.
    """
    host = socket.gethostname()
    with brief(jobs._binding(), jobs, _TIMEOUT) as session:
        freshest = read_freshest(session, jobs, host)
    if freshest is None:
        raise JobsError(f"no worker process of host {host} is registered: start one, or read its log")
    if freshest.beat_age >= freshest.lease / 2:
        raise JobsError(
            f"the last heartbeat of a worker of host {host} is {duration(freshest.beat_age)} old, with a lease of "
            f"{duration(freshest.lease)}: its log says why it sends none"
        )
    click.echo(f"process {freshest.pid} stored a heartbeat {duration(freshest.beat_age)} ago")
