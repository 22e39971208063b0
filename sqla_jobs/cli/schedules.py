"""The command `schedule` and its subcommands."""

from __future__ import annotations

import json
from typing import Any

import click
import sqlalchemy as sa

from sqla_jobs.actions import schedules as schedule_actions
from sqla_jobs.actions.audit import Changing
from sqla_jobs.cli.application import actor_option, changing, on_application
from sqla_jobs.cli.naming import ApplicationCommand, right_usage
from sqla_jobs.cli.option_types import json_object
from sqla_jobs.cli.output import as_json, console, plain_json, print_json, print_table, shown
from sqla_jobs.clock import sync_schedules
from sqla_jobs.errors import JobsError
from sqla_jobs.jobs import Jobs
from sqla_jobs.models.types import CatchUp, Overlap
from sqla_jobs.monitoring.ticks import TickReport, read_refusal, read_ticks
from sqla_jobs.monitoring.without_secrets import ShownSchedule, read_schedules
from sqla_jobs.rules.value_checks import check_text
from sqla_jobs.rules.wording import duration, they_are
from sqla_jobs.tasks.schedule import declared


@click.group()
def schedule() -> None:
    """List and change schedules: cron rules that enqueue jobs."""


@schedule.command("list", cls=ApplicationCommand)
@on_application
@as_json
def list_schedules(jobs: Jobs[Any], as_json: bool) -> None:
    """List all schedules, with their next ticks."""
    jobs.tasks.load()
    with jobs._binding().session() as session:
        rows = [_row(one) for one in read_schedules(session, jobs)]
    if as_json:
        print_json(rows)
        return
    print_table(
        ["NAME", "TASK", "RULE", "TIME ZONE", "LAST", "NEXT", ""],
        [
            (row["name"], row["task"], row["cron"], row["timezone"], row["last_run_at"], row["next_run_at"], _note(row))
            for row in rows
        ],
    )


@schedule.command(cls=ApplicationCommand)
@on_application
@click.argument("name")
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="Number of ticks.")
@as_json
def show(jobs: Jobs[Any], name: str, limit: int, as_json: bool) -> None:
    """Show a schedule, and whether its last ticks were enqueued, skipped or missed."""
    jobs.tasks.load()
    with jobs._binding().session() as session:
        found = read_schedules(session, jobs, jobs.Schedule.name == check_text("name", name))
        if not found:
            raise JobsError(f"there is no schedule {name!r}: `schedule list` shows them")
        (one,) = found
        row, ticks = _row(one), read_ticks(session, jobs, one.row.id, limit)
        refused = one.shown.text(read_refusal(session, jobs, one.row.id))
    if as_json:
        print_json(row | {"refused": refused, "ticks": ticks})
        return
    arguments = row.pop("args")
    print_table(["SCHEDULE", name], [(key, value) for key, value in row.items() if key != "name" and value is not None])
    click.echo("\narguments")
    console().print_json(data=arguments)
    if refused:
        click.echo(f"\nthe due tick {shown(refused)}")
    if not ticks:
        click.echo("\nno tick yet")
        return
    click.echo()
    print_table(["TICK", "LAST", "NUMBER", "OUTCOME", "JOB", "IS NOW", "LATE"], [_tick(tick) for tick in ticks])


def _tick(tick: TickReport) -> tuple[object, ...]:
    last = None if tick.until == tick.scheduled_for else tick.until
    state = tick.job_state or ("deleted" if tick.job_id else None)
    return tick.scheduled_for, last, tick.count, tick.outcome, tick.job_id, state, duration(tick.late)


def _row(one: ShownSchedule) -> dict[str, Any]:
    plain = ("id", "name", "task", "cron", "timezone", "queue", "priority", "catch_up", "overlap", "jitter")
    state = ("enabled", "disabled_reason", "next_run_at", "last_run_at", "declared")
    seen = {"disabled_reason": one.disabled_reason, "args": plain_json(one.shown.pretty)}
    return {name: getattr(one.row, name) for name in (*plain, *state)} | seen


def _note(row: dict[str, Any]) -> str:
    if not row["enabled"]:
        return f"disabled: {row['disabled_reason'] or 'no reason given'}"
    return " " if row["next_run_at"] else "no clock has seen it yet"


@schedule.command("set", cls=ApplicationCommand)
@on_application
@click.argument("name")
@click.option("--task", help="The task to enqueue.")
@click.option("--args", metavar="JSON", type=json_object, help="The arguments of its jobs, in a JSON object.")
@click.option("--cron", metavar="RULE", help="The rule, such as '30 2 * * *'.")
@click.option("--timezone", help="An IANA name, such as Europe/Paris.")
@click.option("--queue", help="The queue of its jobs.")
@click.option("--priority", type=int, help="The priority of its jobs, from -10 to 10; lower runs first.")
@click.option("--catch-up", type=click.Choice([*CatchUp]), help="Which missed ticks to fire.")
@click.option("--overlap", type=click.Choice([*Overlap]))
@click.option("--jitter", type=float, metavar="SECONDS", help="Delay each job by a random time up to this.")
@click.option("--enable/--disable", "is_enabled", default=None, help="Whether it fires, starting with its next tick.")
@click.option("--reason", help="With --disable: the reason, shown by `schedule list`.")
@click.option("--run", is_flag=True, help="Enqueue a job now, whatever the rule, and print the job's id.")
@actor_option
def set_schedule(
    jobs: Jobs[Any],
    /,
    actor: str,
    name: str,
    is_enabled: bool | None,
    reason: str | None,
    run: bool,
    **given: Any,
) -> None:
    """Change what NAME enqueues, or when; add it with --task and --cron if there is no such schedule.

    Only `schedule sync --reset` restores the values that code declares.
    """
    values = {option: value for option, value in given.items() if value is not None}
    jobs.tasks.load()
    if "task" in values:
        values["task"] = jobs.tasks[values["task"]].name
    if not values and is_enabled is None and not run:
        raise click.UsageError("nothing to change is given: give an option such as --args, --cron or --disable")
    if reason is not None and is_enabled is not False:
        raise click.UsageError("--reason is for --disable: give both, or neither")
    with changing(jobs, actor) as it:
        with right_usage():
            _set(it, jobs, name, values)
        if is_enabled:
            schedule_actions.enable(it, name)
        elif is_enabled is False:
            schedule_actions.disable(it, name, reason or "")
        if run:
            click.echo(schedule_actions.fire(it, name).id)


def _set(it: Changing, jobs: Jobs[Any], name: str, values: dict[str, Any]) -> None:
    """Set these values of the schedule, or add it, and print what has changed."""
    is_known = it.session.scalar(sa.select(jobs.Schedule.id).where(jobs.Schedule.name == check_text("name", name)))
    if is_known is None and {"task", "cron"} <= values.keys():
        declaration = jobs.tasks[values.pop("task")]._declaration
        cron, args = values.pop("cron"), declaration.codec.decode(json.dumps(values.pop("args", {})))
        options: Any = values | {"name": name, "args": args}
        schedule_actions.add(it, name, declared(declaration, cron, options, dict).row())
        click.echo(f"added {name}")
        return
    changed = schedule_actions.edit(it, name, values) if values else {}
    for field, change in changed.items():
        text = change if isinstance(change, str) else f"{change['from']} → {change['to']}"
        click.echo(shown(f"{field}: {text}"))
    if values and not changed:
        click.echo("nothing changed: the schedule has these values already")


@schedule.command(cls=ApplicationCommand)
@on_application
@click.argument("name")
@actor_option
def remove(jobs: Jobs[Any], actor: str, name: str) -> None:
    """Delete NAME, a schedule that an operator added. A declared schedule would come back: disable it instead."""
    with changing(jobs, actor) as it:
        schedule_actions.remove(it, name)


@schedule.command("sync", cls=ApplicationCommand)
@on_application
@click.option("--keep", is_flag=True, help="Leave schedules enabled that this code does not declare.")
@click.option("--reset", is_flag=True, help="Undo the changes of operators.")
def sync(jobs: Jobs[Any], keep: bool, reset: bool) -> None:
    """Store the schedules that code declares, and disable those that it no longer declares.

    Clocks also store them when they start, and disable those that no process has declared for a day.
    """
    with jobs._binding().transaction() as session:
        retired = sync_schedules(session, jobs, reset=reset, keep=keep)
    click.echo(f"{they_are(len(jobs.schedules), 'schedule')} declared in code")
    for name in retired:
        click.echo(f"disabled: {name}")
