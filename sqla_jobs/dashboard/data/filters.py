"""Filters: the part of a URL that selects jobs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqla_jobs.actions.selection import FILTERS, Selection, read_selection
from sqla_jobs.errors import ArgumentsError, JobsError
from sqla_jobs.jobs import Jobs
from sqla_jobs.models.types import JobState

_ALWAYS_SHOWN = {"state", "task", "queue", "error", "arg"}


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
        return JobState(self.selection.states[0]) if self.selection.states else None

    @property
    def has_more_than_state(self) -> bool:
        """True if there is any filter except the state."""
        return bool(self.given.keys() - {"state"})

    @property
    def has_rare_ones(self) -> bool:
        """True if any of the filters has a field that the page hides at first."""
        return bool(self.given.keys() - _ALWAYS_SHOWN)

    def without(self, name: str) -> dict[str, str]:
        """Return all filters but one, for a URL."""
        return {key: value for key, value in self.given.items() if key != name}


def read_filter(jobs: Jobs[Any], values: Mapping[str, str]) -> Filter:
    """Parse the filter in a URL or a form. Raises a `BadFilter` that names the invalid part."""
    given = {one.name: text for one in FILTERS if (text := values.get(one.name, "").strip())}
    try:
        return Filter(given, read_selection(jobs.tasks.sensitive, {name: [text] for name, text in given.items()}))
    except ArgumentsError as error:
        raise BadFilter(str(error)) from None
