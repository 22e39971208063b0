"""Filters: the part of a URL that selects jobs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from sqla_jobs.actions.selection import Selection, read_value, searching
from sqla_jobs.errors import ArgumentsError, JobsError
from sqla_jobs.jobs import Jobs
from sqla_jobs.models.types import JobState
from sqla_jobs.rules.value_checks import read_moment

NAMES = (
    "state",
    "task",
    "queue",
    "error",
    "args",
    "result",
    "key",
    "batch",
    "schedule",
    "created_after",
    "created_before",
)


class BadFilter(JobsError):
    """A filter that cannot be understood."""


@dataclass(frozen=True)
class Filter:
    """The filters in a URL, as written, and the jobs that they select."""

    given: Mapping[str, str]
    selection: Selection

    @property
    def state(self) -> JobState | None:
        """The selected state; None if no state is selected."""
        return self.selection.states[0] if self.selection.states else None

    @property
    def has_more_than_state(self) -> bool:
        """True if there is any filter except the state."""
        return bool(self.given.keys() - {"state"})

    @property
    def has_rare_ones(self) -> bool:
        """True if any of the filters has a field that the page hides at first."""
        return bool(self.given.keys() & {"created_after", "created_before", "result", "key", "batch", "schedule"})

    def without(self, name: str) -> dict[str, str]:
        """Return all filters but one, for a URL."""
        return {key: value for key, value in self.given.items() if key != name}


def read_filter(jobs: Jobs[Any], values: Mapping[str, str]) -> Filter:
    """Parse the filter in a URL or a form. Raises a `BadFilter` that names the invalid part."""
    given = {name: text for name in NAMES if (text := values.get(name, "").strip())}
    try:
        return Filter(given, _selection(jobs, given))
    except ArgumentsError as error:
        raise BadFilter(str(error)) from None


def _selection(jobs: Jobs[Any], given: Mapping[str, str]) -> Selection:
    return searching(
        jobs.tasks.sensitive,
        states=(_state(given["state"]),) if "state" in given else (),
        tasks=(given["task"],) if "task" in given else (),
        queues=(given["queue"],) if "queue" in given else (),
        error=given.get("error"),
        args=_pairs_in("args", given.get("args", "{}")),
        results=_pairs_in("result", given.get("result", "{}")),
        unique_keys=(given["key"],) if "key" in given else (),
        schedules=(_whole_number("schedule", given["schedule"]),) if "schedule" in given else (),
        batches=(_whole_number("batch", given["batch"]),) if "batch" in given else (),
        after=read_moment("created_after", given["created_after"]) if "created_after" in given else None,
        before=read_moment("created_before", given["created_before"]) if "created_before" in given else None,
    )


def _state(text: str) -> JobState:
    if text not in list(JobState):
        raise BadFilter(f"state={text!r:.40}: one of {', '.join(JobState)}")
    return JobState(text)


def _whole_number(name: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise BadFilter(f"{name} must be an integer, got {text!r:.40}")
    return int(text)


def _pairs_in(name: str, text: str) -> dict[str, Any]:
    """Parse a JSON object; or `name=value, …`, with values as JSON without commas, or else as plain text."""
    try:
        if text.startswith("{"):
            return cast("dict[str, Any]", json.loads(text))
        pairs = [part.split("=", 1) for part in text.split(",")]
        return {key.strip(): read_value(value.strip()) for key, value in pairs}
    except (ValueError, RecursionError):
        raise BadFilter(
            f'{name}={text!r:.60}: write name=value, such as order=17 or email="a@b.c", or a JSON object'
        ) from None
