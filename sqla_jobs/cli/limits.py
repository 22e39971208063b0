"""The commands `limit list`, `limit set` and `limit clear`."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import click
from sqlalchemy.orm import Session

from sqla_jobs.actions import limits as actions
from sqla_jobs.actions.limits import UNSET, Target
from sqla_jobs.cli.application import actor_option, changing, on_application
from sqla_jobs.cli.naming import ApplicationCommand, right_usage
from sqla_jobs.cli.output import as_json, print_json, print_table, shown
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
        if (which is None) == (queue is None):
            raise click.UsageError("name either a task or limit, or --queue NAME")
        if queue is not None and key is not UNSET:
            raise click.UsageError("--queue takes no --key: a queue has one limit")
        with right_usage():
            target = actions.target(jobs.tasks, which, queue=queue, key=key)
        command(jobs, *args, target=target, queue=queue, **options)

    return run


@limit.command("set", cls=ApplicationCommand)
@on_application
@_of_which
@click.option("--running", type=int, metavar="N", help="At most N jobs at once; 0 lets nothing start.")
@click.option("--rate", type=int, metavar="N", help="At most N starts in any --per seconds.")
@click.option("--per", type=float, metavar="SECONDS", help="The period of --rate, from 1 to 86400.")
@click.option("--reason", default="", help="The reason, shown by `limit list`.")
@click.option("--yes", is_flag=True, help="Accept a queue that no job, worker or task of the application uses.")
@actor_option
def set_limit(
    jobs: Jobs[Any],
    actor: str,
    target: Target,
    queue: str | None,
    running: int | None,
    rate: int | None,
    per: float | None,
    reason: str,
    yes: bool,
) -> None:
    """Override the declared limit until `limit clear`. Running jobs are not interrupted."""
    if running is None and rate is None:
        raise click.UsageError("no number is given: give --running N, or --rate N with --per SECONDS, or both")
    if (rate is None) != (per is None):
        raise click.UsageError("--rate N and --per SECONDS go together")
    with changing(jobs, actor) as it:
        if queue is not None and not yes:
            check_queue(jobs, it.session, queue, "; --yes limits it all the same")
        with right_usage():
            gates = actions.set_limit(it, target, running=running, rate=rate, per=per, reason=reason)
        _print_limits(jobs, it.session, gates)


@limit.command("clear", cls=ApplicationCommand)
@on_application
@_of_which
@actor_option
def clear(jobs: Jobs[Any], actor: str, target: Target, queue: str | None) -> None:
    """Remove the override: the declared limit applies again, if there is one."""
    with changing(jobs, actor) as it:
        gates = actions.clear_limit(it, target)
        if not gates:
            meant = " and ".join(titled(gate) for gate in actions.gates_of(target))
            raise JobsError(
                f"no operator has overridden the {meant}; `sqla-jobs limit list` shows which limits are overridden"
            )
        _print_limits(jobs, it.session, gates)


def _print_limits(jobs: Jobs[Any], session: Session, gates: list[str]) -> None:
    now = {one.gate: one for one in read_limits(session, jobs)}
    for gate in gates:
        one = now.get(gate) or now.get(f"{gate.partition('=')[0]}=")
        of_each = " (that of each key)" if one is not None and one.gate != gate else ""
        said = "nothing is limited" if one is None else f"{one.in_effect}{of_each}"
        code = f" (declared: {one.by_code})" if one is not None and one.set_at and one.by_code else ""
        click.echo(shown(f"{titled(gate)}: {said}{code}"))
