"""`limits`, and `limit set` and `limit clear`."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import click
from sqlalchemy.orm import Session

from sqla_jobs.actions import limits as actions
from sqla_jobs.actions.limits import UNSET, Target
from sqla_jobs.cli.application import audited, changing, on_application
from sqla_jobs.cli.naming import ApplicationCommand, right_usage
from sqla_jobs.cli.output import as_json, exact_numbers, print_json, print_table, shown
from sqla_jobs.cli.selecting import check_queue
from sqla_jobs.errors import JobsError
from sqla_jobs.jobs import Jobs
from sqla_jobs.monitoring.limits import read_limits
from sqla_jobs.rules.keys import key_in
from sqla_jobs.rules.limits import titled
from sqla_jobs.rules.wording import NOTHING
from sqla_jobs.runtime.figures import LimitStatus


@click.command(cls=ApplicationCommand)
@on_application
@exact_numbers
@as_json
def limits(jobs: Jobs[Any], exact: bool, as_json: bool) -> None:
    """Limits: their numbers, what of them is used, and how many jobs wait."""
    with jobs.binding().transaction() as session:
        found = read_limits(session, jobs, exact=exact)
    if as_json:
        print_json(found)
        return
    print_table(
        [
            "LIMIT",
            "KEY",
            "KIND",
            "IN EFFECT",
            "CODE SAYS",
            "SET BY AN OPERATOR",
            "WHY",
            "USED",
            "WAITING",
            "NEXT START",
        ],
        [_line(one) for one in found],
    )
    if not found:
        click.echo("Nothing is limited. A worker stores what code declares when it starts.", err=True)


def _line(one: LimitStatus) -> tuple[object, ...]:
    used = NOTHING if one.used is None else str(one.used)
    setter = None if one.set_at is None else f"{shown(one.set_at)}{f' by {one.set_by}' if one.set_by else ''}"
    numbers = (one.in_effect, one.by_code, setter, one.set_reason)
    return one.name, one.key, one.kind, *numbers, used, str(one.waiting), one.next_at


@click.group()
def limit() -> None:
    """Set the numbers of a limit in place of what code says, and take that back."""


def _key(context: click.Context, option: click.Parameter, given: str | None) -> object:
    return UNSET if given is None else key_in(given)


def _of_which(command: Callable[..., None]) -> Callable[..., None]:
    """Gives the command the rows that are meant as `target`, called with a session."""

    @click.argument("which", metavar="[TASK_OR_NAME]", required=False)
    @click.option("--queue", help="A queue, instead of a task or a name.")
    @click.option("--key", metavar="JSON", callback=_key, help="One key alone, such as 17 or acme.")
    @wraps(command)
    def run(jobs: Jobs[Any], *args: Any, which: str | None, queue: str | None, key: object, **options: Any) -> None:
        if (which is None) == (queue is None):
            raise click.UsageError("name a task or a limit, or else --queue NAME")
        if queue is not None and key is not UNSET:
            raise click.UsageError("--queue takes no --key: a queue has one limit")
        with right_usage():
            target = actions.target(jobs.tasks, which, queue=queue, key=key)
        command(jobs, *args, target=target, queue=queue, **options)

    return run


@limit.command("set", cls=ApplicationCommand)
@on_application
@_of_which
@click.option("--running", type=int, metavar="N", help="At most so many at once; 0 lets nothing start.")
@click.option("--rate", type=int, metavar="N", help="At most so many starts in any --per seconds.")
@click.option("--per", type=float, metavar="SECONDS", help="From 1 to 86400.")
@click.option("--reason", default="", help="Why, for people.")
@click.option("--yes", is_flag=True, help="Also a queue that no job, worker or task of the application has.")
@audited
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
    """From now on these numbers go, whatever code says; what runs goes on."""
    if running is None and rate is None:
        raise click.UsageError("say --running N, or --rate N with --per SECONDS, or both")
    if (rate is None) != (per is None):
        raise click.UsageError("--rate N and --per SECONDS go together")
    with changing(jobs, actor) as it:
        if queue is not None and not yes:
            check_queue(jobs, it.session, queue, "; --yes limits it all the same")
        with right_usage():
            gates = actions.set_limit(it, target, running=running, rate=rate, per=per, reason=reason)
        _tell(jobs, it.session, gates)


@limit.command("clear", cls=ApplicationCommand)
@on_application
@_of_which
@audited
def clear(jobs: Jobs[Any], actor: str, target: Target, queue: str | None) -> None:
    """What code declares goes again, or no limit."""
    with changing(jobs, actor) as it:
        gates = actions.clear_limit(it, target)
        if not gates:
            meant = " and ".join(titled(gate) for gate in actions.gates_of(target))
            raise JobsError(f"no operator has set the {meant}; `sqla-jobs limits` shows what is set")
        _tell(jobs, it.session, gates)


def _tell(jobs: Jobs[Any], session: Session, gates: list[str]) -> None:
    now = {one.gate: one for one in read_limits(session, jobs)}
    for gate in gates:
        one = now.get(gate) or now.get(f"{gate.partition('=')[0]}=")
        of_each = " (that of each key)" if one is not None and one.gate != gate else ""
        said = "nothing is limited" if one is None else f"{one.in_effect}{of_each}"
        code = f" (code says {one.by_code})" if one is not None and one.set_at and one.by_code else ""
        click.echo(shown(f"{titled(gate)}: {said}{code}"))
