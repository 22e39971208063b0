"""The resources, such as an HTTP client, that the tasks of a worker share."""

from __future__ import annotations

import typing
from collections.abc import Iterable
from typing import TypeVar

from sqla_jobs.errors import ConfigurationError

T = TypeVar("T")


class Resources:
    """The values that worker contexts yielded, found by type.

    `run.resources[httpx.Client]` is the value of exactly that class, or else the only value of a subclass. The look-up
    raises `ConfigurationError` if no value matches, or if several values of subclasses do.
    """

    __slots__ = ("_values",)

    def __init__(self, values: Iterable[object] = ()) -> None:
        """Hold `values`. Raises `ConfigurationError` if two of them have the same type."""
        self._values: list[object] = []
        for value in values:
            self.add(value)

    def add(self, value: object) -> None:
        """Add a value, unless it is `None`. Raises `ConfigurationError` if another value has the same type."""
        if value is None:
            return
        if any(type(other) is type(value) for other in self._values):
            raise ConfigurationError(
                f"there are two resources of type {_name(type(value))}, and run.resources finds them by type: "
                "yield one of them inside a class of its own, such as a dataclass"
            )
        self._values.append(value)

    def __getitem__(self, kind: type[T]) -> T:
        """Return the value of the class `kind`."""
        expected: type[T] = typing.get_origin(kind) or kind
        found = [value for value in self._values if isinstance(value, expected)]
        exact = [value for value in found if type(value) is expected]
        if len(exact or found) == 1:
            return (exact or found)[0]
        if found:
            kinds = ", ".join(_name(type(value)) for value in found)
            raise ConfigurationError(f"run.resources[{_name(expected)}]: several are of that class, {kinds}: name one")
        known = ", ".join(_name(type(value)) for value in self._values) or "none at all"
        raise ConfigurationError(
            f"run.resources[{_name(expected)}]: no worker context yields one (they yield: {known}): declare it with "
            "@jobs.worker_context in a module that workers import"
        )

    def __repr__(self) -> str:
        return f"<Resources: {', '.join(_name(type(value)) for value in self._values) or 'none'}>"


NO_RESOURCES = Resources()
"""Empty resources, for runs without worker contexts."""


def _name(kind: type[object]) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
