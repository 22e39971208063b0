"""The arguments and texts of a job for a page, without sensitive values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from sqla_jobs.dashboard.render import json_text
from sqla_jobs.jobs import Jobs
from sqla_jobs.rules.redaction import ERASED, HIDDEN, Secrets, is_erased, parse

READ = 2_000
"""The maximum number of characters read from an error whose beginning is shown."""
_SAID = 300
_MAY_BE_CUT = 200
"""How many characters are dropped from the end of a cut text. A secret that was cut there may not be recognized."""


@dataclass(frozen=True)
class Shown:
    """The arguments of one job without sensitive values; `None` if they are not readable JSON."""

    args: dict[str, Any] | None
    secrets: Secrets
    withheld: frozenset[str]
    """The names of arguments that are masked."""
    is_erased: bool = False

    def text(self, text: str | None) -> str | None:
        """Return `text` without secrets."""
        return None if text is None else self.secrets.text(text)

    def beginning(self, text: str) -> str:
        """Return the beginning of `text`, without secrets. The query read at most `READ` characters of the text."""
        said = self.secrets.text(text)
        return (said[:-_MAY_BE_CUT] if len(text) >= READ else said)[:_SAID]

    def json(self, text: str) -> str:
        """Return JSON on several lines, without secrets."""
        try:
            return json_text.pretty(self.secrets.json(json_text.parse(text)))
        except (ValueError, RecursionError):
            return self.secrets.text(text)

    @property
    def pretty(self) -> str:
        """The arguments, on several lines."""
        if self.args is None:
            return ERASED if self.is_erased else HIDDEN
        return json_text.pretty(self.args)

    @property
    def summary(self) -> str:
        """The arguments on one line, as in a call, at most 160 characters."""
        if self.args is None:
            return ERASED if self.is_erased else "…"
        said = ", ".join(f"{name}={json_text.compact(value)}" for name, value in self.args.items())
        return said if len(said) <= 160 else f"{said[:159]}…"


def shown(jobs: Jobs[Any], task: str, args: str) -> Shown:
    """Return the stored arguments of a job of `task` for a page. The arguments of an unknown task are unchanged."""
    secrets = jobs.tasks.secrets(task, args)
    values = parse(args)
    if is_erased(values) or not isinstance(values, dict):
        return Shown(None, secrets, frozenset(), is_erased=is_erased(values))
    values = cast("dict[str, Any]", values)
    seen = jobs.tasks.shown(task, values)
    return Shown(seen, secrets, frozenset(name for name, value in values.items() if seen[name] != value))
