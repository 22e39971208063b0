"""The commands, put together."""

from __future__ import annotations

import click

from sqla_jobs.cli import dashboard, reading, running, schedules

COMMANDS: tuple[click.Command, ...] = (
    running.worker,
    running.clock,
    reading.status,
    schedules.schedule,
    dashboard.dashboard,
)


@click.group()
@click.version_option(package_name="sqla-jobs")
def main() -> None:
    """Background jobs in your own PostgreSQL database."""


for command in COMMANDS:
    main.add_command(command)
