"""The commands that hold jobs back: `pause` and `resume`, `limit list`, `limit set` and `limit clear`."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from sqla_jobs.actions import limits as actions
from sqla_jobs.actions import pausing
from sqla_jobs.actions.limits import UNSET, Target
from sqla_jobs.cli.application import actor_option, changing, on_application
from sqla_jobs.cli.naming import ApplicationCommand, right_usage
from sqla_jobs.cli.option_types import moment
from sqla_jobs.cli.output import as_json, print_json, print_table, shown, till
from sqla_jobs.cli.selecting import check_queue
from sqla_jobs.errors import JobsError
from sqla_jobs.jobs import Jobs
from sqla_jobs.monitoring.limits import read_limits
from sqla_jobs.rules.keys import key_in
from sqla_jobs.rules.limits import titled
from sqla_jobs.rules.wording import NOTHING
from sqla_jobs.runtime.metrics import LimitStatus


@click.group()
def limit() -> None:
    """List limits, override a limit's numbers, or return to the declared ones."""


@limit.command("list", cls=ApplicationCommand)
@on_application
@as_json
def list_limits(jobs: Jobs[Any], as_json: bool) -> None:
    """List limits: their numbers, how much of each is used, and how many jobs are waiting."""
    with jobs._binding().session() as session:
        found = read_limits(session, jobs)
    if as_json:
        print_json(found)
        return
    print_table(
        [
            "LIMIT",
            "KEY",
            "KIND",
            "IN EFFECT",
            "DECLARED",
            "OVERRIDDEN",
            "REASON",
            "USED",
            "WAITING",
            "NEXT START",
        ],
        [_line(one) for one in found],
    )
    if not found:
        click.echo("There are no limits. A worker stores the limits that code declares when it starts.", err=True)


def _line(one: LimitStatus) -> tuple[object, ...]:
    used = NOTHING if one.used is None else str(one.used)
    setter = None if one.set_at is None else f"{shown(one.set_at)}{f' by {one.set_by}' if one.set_by else ''}"
    numbers = (one.in_effect, one.by_code, setter, one.set_reason)
    return one.name, one.key, one.kind, *numbers, used, str(one.waiting), one.next_at


def _key(context: click.Context, option: click.Parameter, given: str | None) -> object:
    return UNSET if given is None else key_in(given)


def _of_which(command: Callable[..., None]) -> Callable[..., None]:
    """Give the command a `target`: the limits that its arguments name."""

    @click.argument("which", metavar="[TASK_OR_NAME]", required=False)
    @click.option("--queue", help="A queue, instead of a task or a name.")
    @click.option("--key", metavar="JSON", callback=_key, help="Only one key, such as 17 or acme.")
    @wraps(command)
    def run(jobs: Jobs[Any], *args: Any, which: str | None, queue: str | None, key: object, **options: Any) -> None:
        with right_usage():
            target = actions.target(jobs.tasks, which, queue=queue, key=key)
        command(jobs, *args, target=target, **options)

    return run


@limit.command("set", cls=ApplicationCommand)
@on_application
@_of_which
@click.option("--running", type=int, metavar="N", help="At most N jobs at once; 0 lets nothing start.")
@click.option("--rate", type=int, metavar="N", help="At most N starts in any --per seconds.")
@click.option("--per", type=float, metavar="SECONDS", help="The period of --rate, from 1 to 86400.")
@click.option("--reason", default="", help="The reason, shown by `limit list`.")
@actor_option
def set_limit(jobs: Jobs[Any], actor: str, target: Target, **given: Any) -> None:
    """Override the declared limit until `limit clear`. Running jobs are not interrupted."""
    with changing(jobs, actor) as it, right_usage():
        gates = actions.set_limit(it, target, **given)
    click.echo(shown(f"overridden: {', '.join(map(titled, gates))}"))


@limit.command("clear", cls=ApplicationCommand)
@on_application
@_of_which
@actor_option
def clear(jobs: Jobs[Any], actor: str, target: Target) -> None:
    """Remove the override: the declared limit applies again, if there is one."""
    with changing(jobs, actor) as it:
        gates = actions.clear_limit(it, target)
        if not gates:
            raise JobsError("no operator has overridden it; `sqla-jobs limit list` shows which limits are overridden")
    click.echo(shown(f"as declared: {', '.join(map(titled, gates))}"))


def _queue_or_task(command: Callable[..., None]) -> Callable[..., None]:
    task = click.option("--task", help="A task, by name or alias, in all queues.")
    return click.argument("queue", required=False)(task(command))


@click.command(cls=ApplicationCommand)
@on_application
@_queue_or_task
@click.option("--reason", help="The reason, shown by `status`.")
@click.option(
    "--until",
    metavar="TIME|MOMENT",
    type=moment,
    help="Resume automatically: after 90s, 15m, 12h, 7d, or at 2026-03-29T14:30, in UTC.",
)
@click.option("--yes", is_flag=True, help="Accept a queue that no job, worker or task of the application uses.")
@actor_option
def pause(jobs: Jobs[Any], actor: str, queue: str | None, yes: bool, **given: Any) -> None:
    """Pause QUEUE or a task: no more jobs start, running jobs continue."""
    with changing(jobs, actor) as it:
        if queue is not None and not yes:
            check_queue(jobs, it.session, queue, "; --yes pauses it all the same")
        with right_usage():
            subject = pausing.pause(it, queue, **given)
    click.echo(f"{subject} is paused{till(given['until'])}: no more jobs start, running jobs continue")


@click.command(cls=ApplicationCommand)
@on_application
@_queue_or_task
@actor_option
def resume(jobs: Jobs[Any], actor: str, queue: str | None, task: str | None) -> None:
    """Resume a paused QUEUE or task."""
    with changing(jobs, actor) as it, right_usage():
        is_resumed = pausing.resume(it, queue, task=task)
    if not is_resumed:
        raise JobsError(f"{task or queue!r} is not paused: `sqla-jobs status` shows what is")
    click.echo(f"{task or queue} is resumed")
