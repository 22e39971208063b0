"""The retention of ended jobs, audit log entries and ticks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import Literal, NamedTuple, TypeAlias, cast

from typing_extensions import TypedDict

from sqla_jobs.errors import ConfigurationError, DeclarationError
from sqla_jobs.rules.value_checks import check_seconds

AUDIT, TICKS = "audit", "ticks"
Kept: TypeAlias = Literal["succeeded", "failed", "cancelled", "audit", "ticks"]
Retention: TypeAlias = Mapping[Kept, "timedelta | float | None"]
"""A timedelta or seconds for each state of ended jobs, for "audit" and for "ticks"; None to keep them forever."""

KEPT: Retention = MappingProxyType(
    {
        "succeeded": timedelta(days=7),
        "cancelled": timedelta(days=7),
        "failed": timedelta(days=30),
        "audit": timedelta(days=365),
        "ticks": timedelta(days=30),
    }
)
"""The defaults. Failed jobs are kept longer, since they still need attention."""

ERASE = "erase"


class TaskRetention(TypedDict, total=False):
    """The retention of one task's jobs by final state: a timedelta or seconds, or None to keep them forever.

    For a state that is left out, the worker's retention applies.
    """

    succeeded: timedelta | float | Literal["erase"] | None
    """"erase" erases arguments and result in the commit that stores the success. The row is kept as long as the
    worker's retention says."""
    failed: timedelta | float | None
    cancelled: timedelta | float | None


@dataclass(frozen=True, slots=True)
class OwnRetention:
    """A task's declared retention of its ended jobs."""

    kept: Mapping[str, float | None]
    """Seconds by state; None to keep the jobs forever. For other states, the worker's retention applies."""
    erases: bool = False
    """True if arguments and result are erased when a job succeeds."""


NO_RETENTION = OwnRetention({})
"""The retention of a task that declares none."""
_STATES = TaskRetention.__annotations__


def own_retention(task: str, given: object) -> OwnRetention:
    """Return the retention of a task declared with `retention=given`. Raises `DeclarationError` if it is invalid."""
    by_state = cast("Mapping[str, object]", given if isinstance(given, Mapping) else dict.fromkeys(_STATES, given))
    if unknown := by_state.keys() - _STATES.keys():
        raise DeclarationError(
            f"{task}: unknown state {min(unknown, key=str)!r} in retention; valid states: {', '.join(_STATES)}"
        )
    erases = by_state.get("succeeded") == ERASE
    for state, kept in by_state.items():
        if kept == ERASE and state != "succeeded":
            raise DeclarationError(
                f"{task}: only a job that succeeded is erased: the others may be retried, which takes their arguments. "
                "Write retention={'succeeded': 'erase', 'failed': 3600} to delete those that failed after an hour"
            )
    times = {state: kept for state, kept in by_state.items() if kept != ERASE}
    return OwnRetention({state: _seconds(task, state, kept) for state, kept in times.items()}, erases)


def _seconds(task: str, state: str, kept: object) -> float | None:
    if kept is None:
        return None
    if isinstance(kept, str):
        raise DeclarationError(
            f"{task}: retention of {state} is {kept!r:.60}: give seconds, a timedelta, None to keep the jobs "
            "forever, or 'erase' for the state 'succeeded'"
        )
    return check_seconds(f"{task}: retention of {state}", kept, error=DeclarationError)


class Rule(NamedTuple):
    """A rule that deletes jobs `kept` seconds after they ended in `state`."""

    state: str
    kept: float
    only: tuple[str, ...] = ()
    """The names of the tasks to which the rule applies. If empty, it applies to all tasks except `others`."""
    others: tuple[str, ...] = ()
    """The names of tasks whose jobs are kept longer."""
    for_all: bool = False
    """True if the rule also applies to jobs with a retention of their own."""


def rules(retention: Mapping[str, float], tasks: Iterable[tuple[Sequence[str], OwnRetention]]) -> Iterator[Rule]:
    """Yield the rules for a worker's retention, and for the retention of each task.

    `tasks` holds the name and aliases of each task, and the task's retention. The worker's rule also covers tasks with
    a shorter retention, since a search with fewer exceptions is cheaper.
    """
    declared = [*tasks]
    for state in _STATES:
        usual = retention.get(state)
        own_times: dict[float, list[str]] = {}
        longer: list[str] = []
        for names, own in declared:
            if state not in own.kept:
                continue
            kept = own.kept[state]
            if usual is not None and (kept is None or kept > usual):
                longer += names
            if kept is not None and kept != usual:
                own_times.setdefault(kept, []).extend(names)
        if usual is not None:
            yield Rule(state, usual, others=tuple(longer))
        for kept, of_tasks in own_times.items():
            yield Rule(state, kept, only=tuple(of_tasks))


def seconds_kept(given: Retention) -> dict[str, float]:
    """Return the retention in seconds for each name in `KEPT`, except names that are kept forever.

    A name that is not in `given` takes its value from `KEPT`.

    Raises `ConfigurationError` for an unknown name or an invalid duration.
    """
    found: dict[str, float] = {}
    for state, kept in {**KEPT, **given}.items():
        if state not in KEPT:
            raise ConfigurationError(f"unknown retention {state!r}; valid names: {', '.join(KEPT)}")
        if kept is None:
            continue
        found[state] = check_seconds(f"retention of {state}", kept, error=ConfigurationError)
    return found
