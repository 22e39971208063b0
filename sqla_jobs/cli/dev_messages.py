"""The messages between the two processes of `dev`."""

from __future__ import annotations

from typing import NamedTuple

from sqla_jobs.database.shard_name import Where


class Order(NamedTuple):
    """From the parent: the instructions for the child."""

    path: list[str]
    application: str
    where: Where
    private_url: str | None
    """The address of the server that the parent runs; None if it runs none."""
    port: int


class Unbound(NamedTuple):
    """To the parent: the application names no database."""


class Said(NamedTuple):
    """To the parent: a line to show."""

    line: str


class Failed(NamedTuple):
    """To the parent: the reason why the child ends."""

    reason: str


class Ready(NamedTuple):
    """To the parent: the tables exist, and the dashboard is being served."""

    dashboard: str
    queues: str
    """The queues that the application configures, else those of all tasks. The text is written like `--queues`."""


Answer = Unbound | Said | Failed | Ready
