"""The command `rotate-keys`."""

from __future__ import annotations

from typing import Any

import click

from sqla_jobs.actions.rotation import Rotated, rotate
from sqla_jobs.cli.application import actor_option, changing, in_each_shard, on_application
from sqla_jobs.cli.naming import ApplicationCommand
from sqla_jobs.cli.output import console
from sqla_jobs.errors import JobsError
from sqla_jobs.jobs import Jobs
from sqla_jobs.queries.encrypted import COLUMNS
from sqla_jobs.rules.wording import plural


@click.command("rotate-keys", cls=ApplicationCommand)
@on_application
@actor_option
@in_each_shard
def rotate_keys(jobs: Jobs[Any], actor: str) -> None:
    """Encrypt with the first key what older keys have encrypted.

    This goes through jobs, runs, steps and signals in batches, and can be interrupted and run again. Exits with 1 if
    anything is left that the first key does not decrypt: then keep the older keys.
    """
    jobs._keys.require()
    totals = {noun: _rotated(jobs, noun) for noun in COLUMNS}
    for noun, done in totals.items():
        click.echo(f"{noun}: {plural(done.seen, 'encrypted row')}, {done.changed:,} changed to the first key just now")
    with changing(jobs, actor) as it:
        it.record("rotate keys", "encryption", **{noun: done.changed for noun, done in totals.items()})
    unreadable, busy = (sum(getattr(done, name) for done in totals.values()) for name in ("unreadable", "busy"))
    if unreadable:
        click.echo(f"{plural(unreadable, 'row')} cannot be read: no key that this process has decrypts them", err=True)
    if busy:
        click.echo(f"{plural(busy, 'row')} left alone, of jobs that are running or locked: run this again", err=True)
    if unreadable or busy:
        raise JobsError("some rows still need other keys than the first")
    click.echo("all of them have the first key now, and no other is needed")


def _rotated(jobs: Jobs[Any], noun: str) -> Rotated:
    """Rotate a table, and once more if some rows were busy."""
    done, changed = Rotated(), 0
    for _ in range(2):
        with console(stderr=True).status(noun) as status:  # only a terminal shows it
            for done in rotate(noun, jobs._models, jobs._binding().transaction, jobs._keys):
                status.update(f"{noun}: {plural(done.seen, 'row')}")
        changed += done.changed
        if not done.busy:
            break
    return Rotated(done.seen, changed, done.unreadable, done.busy)
