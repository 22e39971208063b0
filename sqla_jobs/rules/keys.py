"""Keys that are made of a job's arguments: of some that are named, or by a function. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from decimal import Decimal
from functools import partial
from typing import Any

from sqla_jobs.errors import DeclarationError

KeyOf = str | Sequence[str] | Callable[[Mapping[str, Any]], Any]
"""An argument's name, several names, or a function of the arguments as they are stored."""

as_json: partial[str] = partial(json.dumps, sort_keys=True, separators=(",", ":"))
"""The text of a key: one for equal keys."""


def number_alike(key: str) -> str:
    """The same JSON with whole numbers written as such, 1.0 as 1: PostgreSQL and other languages write either."""
    return as_json(json.loads(key, parse_float=_number)) if key[0] not in '"tfn' and not key.isdecimal() else key


def _number(said: str) -> float | int:
    number = Decimal(said)
    return int(number) if number == number.to_integral_value() else float(number)


def argument_names(what: str, key: object) -> tuple[str, ...]:
    """The arguments that a key names; none where a function makes it. Raises `DeclarationError` for what is no key."""
    if callable(key):
        return ()
    names = (key,) if isinstance(key, str) else key
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise DeclarationError(f"{what} must be an argument's name, a list of names or a function, got {key!r:.60}")
    return tuple(names)


def check_arguments(what: str, names: Sequence[str], arguments: Collection[str]) -> None:
    """Raises `DeclarationError` for a name that is no argument of the task."""
    for name in names:
        if name not in arguments:
            known = ", ".join(arguments) or "none"
            raise DeclarationError(f"{what}={name!r:.60} names no argument of the task; it takes: {known}")


def key_in(text: str) -> object:
    """The key that a person has typed: JSON, such as 17, and else a text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def may_show(key: KeyOf | None, hidden: frozenset[str]) -> bool:
    """Whether a key may show any of the `hidden` arguments, as all arguments do, and what a function makes of them."""
    if key is None or callable(key):
        return bool(hidden)
    return not hidden.isdisjoint(argument_names("key", key))
