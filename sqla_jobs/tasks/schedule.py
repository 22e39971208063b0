"""The schedules that code declares."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from sqla_jobs.errors import ArgumentsError, ConfigurationError, DeclarationError
from sqla_jobs.models.types import CatchUp, Overlap
from sqla_jobs.rules.value_checks import DAY, check_name, check_seconds
from sqla_jobs.tasks.declaration import Declaration
from sqla_jobs.tasks.enqueue import check_common

if TYPE_CHECKING:
    from sqla_jobs.cron import Cron


class ScheduleOptions(TypedDict, total=False):
    """The options of a schedule, given to `task.schedule`."""

    name: str
    """The schedule's name; by default the task's name. Each name makes a separate schedule."""
    timezone: str
    """An IANA time zone such as "Europe/Paris"; by default UTC."""
    args: Mapping[str, Any]
    """Values of the task's arguments, by name."""
    queue: str
    """The queue of the schedule's jobs; by default the task's queue."""
    priority: int
    """The priority of the schedule's jobs, from -10 to 10; lower numbers run first. By default the task's priority."""
    catch_up: CatchUp | Literal["skip", "latest", "all"]
    """Which ticks fire late if no clock ran in time: none, only the newest (the default), or all. At most the newest
    100 fire, the oldest of them first."""
    overlap: Overlap | Literal["allow", "skip"]
    """Whether a tick fires while the job of an earlier tick has not ended: "allow" (the default) or "skip"."""
    jitter: float | timedelta
    """The maximum random delay of each job after its tick, as a timedelta or in seconds. By default none."""
    enabled: bool
    """False declares the schedule as disabled. By default True."""


@dataclass(frozen=True)
class Declared:
    """One declared schedule."""

    name: str
    cron: Cron
    declaration: Declaration
    args: Mapping[str, Any]
    values: Mapping[str, Any]

    @property
    def rule(self) -> tuple[str, str, str]:
        """The values that two declarations with one name must share. A module that is imported twice makes two."""
        return self.declaration.name, self.cron.text, self.cron.timezone

    def row(self) -> dict[str, Any]:
        """Return the declared columns as JSON values. Raises `ArgumentsError` or `DeclarationError`."""
        encoded = self.declaration.codec.encode_without_rows(self.args)
        return {
            "task": self.declaration.name,
            "cron": self.cron.text,
            "timezone": self.cron.timezone,
            "args": json.loads(encoded),
            **self.values,
        }


class Schedules(Mapping[str, Declared]):
    """The declared schedules by name. Clocks store the schedules as rows."""

    def __init__(self) -> None:
        self._by_name: dict[str, Declared] = {}

    def declare(
        self, declaration: Declaration, cron: str, arguments: Mapping[str, Any], options: ScheduleOptions
    ) -> None:
        """Add a schedule. Raises `ConfigurationError`, `ArgumentsError` or `DeclarationError`."""
        one = declared(declaration, cron, arguments, options)
        other = self._by_name.get(one.name)
        if other is not None and other.rule != one.rule:
            raise DeclarationError(
                f"two schedules are named {one.name!r}, {other.declaration.name} at {other.cron.text!r} and "
                f"{declaration.name} at {one.cron.text!r}: give one of them another name="
            )
        self._by_name[one.name] = one

    def __getitem__(self, name: str) -> Declared:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict(self._by_name))

    def __len__(self) -> int:
        return len(self._by_name)


def declared(declaration: Declaration, cron: str, arguments: Mapping[str, Any], options: ScheduleOptions) -> Declared:
    """Check and return a schedule. Raises `ConfigurationError`, `ArgumentsError` or `DeclarationError`."""
    from sqla_jobs.cron import Cron  # imported late, since it imports croniter

    unknown = options.keys() - ScheduleOptions.__annotations__.keys()
    if unknown:
        raise DeclarationError(
            f"unknown schedule option {min(unknown)!r}; valid options: {', '.join(ScheduleOptions.__annotations__)}"
        )
    name = options.get("name", declaration.name)
    check_name("a schedule name", name, error=DeclarationError)
    defaults = declaration.defaults
    values: dict[str, Any] = {
        "queue": options.get("queue", defaults["queue"]),
        "priority": options.get("priority", defaults["priority"]),
        "catch_up": one_of(CatchUp, "catch_up", options.get("catch_up", "latest")),
        "overlap": one_of(Overlap, "overlap", options.get("overlap", "allow")),
        "jitter": jitter_of(options.get("jitter", 0.0)),
        "enabled": options.get("enabled", True),
    }
    try:
        check_common(values)
    except ArgumentsError as error:
        raise DeclarationError(f"schedule {name!r}: {error}") from None
    one = Declared(name, Cron.parse(cron, options.get("timezone", "UTC")), declaration, arguments, values)
    if declaration.codec.is_resolvable:  # otherwise a name is defined later, and the clock checks the arguments
        one.row()
    return one


def one_of(words: type[CatchUp] | type[Overlap], option: str, value: object) -> str:
    """Return the value of an option. Raises `ConfigurationError` unless it is one of `words`."""
    if value not in list(words):
        raise ConfigurationError(f"{option} must be one of {', '.join(words)}, got {value!r}")
    return str(value)


def jitter_of(jitter: object) -> float:
    """Return a jitter in seconds. Raises `ConfigurationError`."""
    return check_seconds("jitter", jitter, most=DAY, error=ConfigurationError)
