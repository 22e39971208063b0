"""The commands, put together."""

from __future__ import annotations

import click

from sqla_jobs.cli import dashboard, grants, jobs, pausing, reading, running, schedules, schema, upkeep

COMMANDS: tuple[click.Command, ...] = (
    running.worker,
    running.clock,
    reading.status,
    reading.list_jobs,
    reading.show,
    jobs.retry,
    jobs.cancel,
    jobs.delete,
    jobs.erase,
    jobs.move,
    jobs.reschedule,
    jobs.enqueue,
    pausing.pause,
    pausing.resume,
    schedules.schedule,
    upkeep.prune,
    upkeep.doctor,
    schema.migrate,
    schema.check,
    grants.grants,
    dashboard.dashboard,
)


@click.group()
@click.version_option(package_name="sqla-jobs")
def main() -> None:
    """Background jobs in your own PostgreSQL database."""


for command in COMMANDS:
    main.add_command(command)
