"""The schedules that code declares."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, PlainValidator, with_config
from typing_extensions import TypedDict

from sqla_jobs.errors import ConfigurationError, DeclarationError
from sqla_jobs.models.types import CatchUp, Overlap
from sqla_jobs.rules.value_checks import DAY, check_name, check_seconds
from sqla_jobs.tasks.declaration import Declaration
from sqla_jobs.tasks.options import Priority, QueueName, checked

if TYPE_CHECKING:
    from sqla_jobs.cron import Cron


_Bind = Callable[[dict[str, Any]], Mapping[str, Any]]


@with_config(ConfigDict(strict=True, extra="forbid"))
class ScheduleOptions(TypedDict, total=False):
    """The options of a schedule, given to `task.schedule`."""

    name: Annotated[str, AfterValidator(partial(check_name, "a schedule name"))]
    """The schedule's name; by default the task's name. Each name makes a separate schedule."""
    timezone: str
    """An IANA time zone such as "Europe/Paris"; by default UTC."""
    args: Mapping[str, Any]
    """Values of the task's arguments, by name."""
    queue: QueueName
    """The queue of the schedule's jobs; by default the task's queue."""
    priority: Priority
    """The priority of the schedule's jobs, from -10 to 10; lower numbers run first. By default the task's priority."""
    catch_up: Annotated[CatchUp | Literal["skip", "latest", "all"], AfterValidator(str)]
    """Which ticks fire late if no clock ran in time: none, only the newest (the default), or all. At most the newest
    100 fire, the oldest of them first."""
    overlap: Annotated[Overlap | Literal["allow", "skip"], AfterValidator(str)]
    """Whether a tick fires while the job of an earlier tick has not ended: "allow" (the default) or "skip"."""
    jitter: Annotated[float | timedelta, PlainValidator(partial(check_seconds, "jitter", most=DAY))]
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

    def declare(self, declaration: Declaration, cron: str, options: ScheduleOptions, bind: _Bind) -> None:
        """Add a schedule. Raises `ConfigurationError`, `ArgumentsError` or `DeclarationError`."""
        one = declared(declaration, cron, options, bind)
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


def declared(declaration: Declaration, cron: str, options: ScheduleOptions, bind: _Bind) -> Declared:
    """Check and return a schedule, with the arguments that `bind` returns.

    Raises `ConfigurationError`, `ArgumentsError` or `DeclarationError`.
    """
    from sqla_jobs.cron import Cron  # imported late, since it imports croniter

    given = checked(ScheduleOptions, options, f"the schedule of {declaration.titled}", DeclarationError)
    defaults: dict[str, Any] = {"catch_up": "latest", "overlap": "allow", "jitter": 0.0, "enabled": True}
    defaults |= {option: declaration.defaults[option] for option in ("queue", "priority")}
    values = {option: given.get(option, default) for option, default in defaults.items()}
    try:
        rule = Cron.parse(cron, given.get("timezone", "UTC"))
    except ConfigurationError as error:
        raise ConfigurationError(f"the schedule of {declaration.titled}: {error}") from None
    one = Declared(given.get("name", declaration.name), rule, declaration, bind(dict(given.get("args", {}))), values)
    if declaration.codec.is_resolvable:  # otherwise a name is defined later, and the clock checks the arguments
        one.row()
    return one
