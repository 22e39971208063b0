"""Keeps sensitive arguments off the pages, and their values out of what is shown beside them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqla_jobs.core import Jobs
from sqla_jobs.dashboard import json_text
from sqla_jobs.declaration import HIDDEN, Declaration
from sqla_jobs.errors import UnknownTask


@dataclass(frozen=True)
class Shown:
    """The arguments of one job as they may be seen; `None` where they are no JSON that can be read."""

    args: dict[str, Any] | None
    secrets: frozenset[str]

    def text(self, text: str | None) -> str | None:
        """`text` without the values of sensitive arguments."""
        if text is not None:
            for secret in sorted(self.secrets, key=len, reverse=True):
                text = text.replace(secret, HIDDEN)
        return text

    @property
    def pretty(self) -> str:
        """Over several lines."""
        return HIDDEN if self.args is None else json_text.pretty(self.args)

    @property
    def summary(self) -> str:
        """On one line, as in a call, at most 160 characters."""
        if self.args is None:
            return "…"
        said = ", ".join(f"{name}={json_text.compact(value)}" for name, value in self.args.items())
        return said if len(said) <= 160 else f"{said[:159]}…"


def declaration_of(jobs: Jobs[Any], task: str) -> Declaration | None:
    """How the task was declared; `None` for one that this application does not know."""
    try:
        return jobs.tasks[task].declaration
    except UnknownTask:
        return None


def shown(jobs: Jobs[Any], task: str, args: str) -> Shown:
    """The stored arguments of a job of `task`. Those of an unknown task are shown as they are."""
    declaration = declaration_of(jobs, task)
    try:
        values: dict[str, Any] = json_text.parse(args)
    except ValueError:
        return Shown(None, frozenset())
    if declaration is None:
        return Shown(values, frozenset())
    return Shown(declaration.shown(values), frozenset(declaration.secrets(values)))


def tasks_hiding(jobs: Jobs[Any], names: Iterable[str]) -> list[str]:
    """The tasks, by name and alias, for which one of these arguments is sensitive: nobody may search there."""
    jobs.tasks.load()
    wanted = set(names)
    return [name for name, task in jobs.tasks.items() if task.declaration.sensitive & wanted]
