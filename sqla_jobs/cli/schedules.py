"""`schedule`."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import click
from sqlalchemy import select

from sqla_jobs.cli.application import ApplicationCommand, on_application
from sqla_jobs.clock.sync import retire, sync
from sqla_jobs.core import Jobs


@click.group()
def schedule() -> None:
    """Schedules: rows that say by cron what is enqueued when."""


@schedule.command("list", cls=ApplicationCommand)
@on_application
def list_schedules(jobs: Jobs[Any]) -> None:
    """All schedules, with their next ticks."""
    with jobs.binding().session_factory() as session:
        for one in session.scalars(select(jobs.Schedule).order_by(jobs.Schedule.name)):
            if not one.enabled:
                then = f"disabled: {one.reason or 'no reason given'}"
            else:
                then = f"next {one.next_run_at}" if one.next_run_at else "no clock has seen it yet"
            click.echo(f"{one.name}  {one.task}  {one.cron}  {one.timezone}  {then}")


@schedule.command("sync", cls=ApplicationCommand)
@on_application
@click.option("--prune", is_flag=True, help="Disable at once what code declared once and does not any more.")
@click.option("--reset", is_flag=True, help="Take back what operators changed.")
def sync_schedules(jobs: Jobs[Any], prune: bool, reset: bool) -> None:
    """Make rows of what code declares. Clocks do so when they start."""
    jobs.tasks.load()
    with jobs.binding().transaction() as session:
        sync(session, jobs.models, jobs.schedules, reset=reset)
        retired = retire(session, jobs.models, jobs.schedules, timedelta(0)) if prune else []
    click.echo(f"{len(jobs.schedules)} schedules are declared in code")
    for name in retired:
        click.echo(f"disabled: {name}")
