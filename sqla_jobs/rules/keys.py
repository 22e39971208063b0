"""Keys made from some of a job's arguments, or by a function of the arguments."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from decimal import Decimal
from functools import partial
from typing import Any

from sqla_jobs.errors import DeclarationError

KeyOf = str | Sequence[str] | Callable[[Mapping[str, Any]], Any]
"""An argument's name, several names, or a function of the stored arguments."""

as_json: partial[str] = partial(json.dumps, sort_keys=True, separators=(",", ":"))
"""Returns the text of a key. Equal keys have equal texts."""


def number_alike(key: str) -> str:
    """Return the JSON text with whole numbers as integers (1.0 as 1), since different programs write either form."""
    return key if key[0] == '"' or key.isdecimal() else as_json(json.loads(key, parse_float=_number))


def _number(text: str) -> float | int:
    number = Decimal(text)
    return int(number) if number == number.to_integral_value() else float(number)


def argument_names(what: str, key: object) -> tuple[str, ...]:
    """Return the arguments that a key names; none if it is a function. Raises `DeclarationError` for an invalid key."""
    if callable(key):
        return ()
    names = (key,) if isinstance(key, str) else key
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise DeclarationError(f"{what} must be an argument's name, a list of names or a function, got {key!r:.60}")
    return tuple(names)


def check_arguments(what: str, names: Sequence[str], arguments: Collection[str]) -> None:
    """Raise `DeclarationError` for a name that is not an argument of the task."""
    for name in names:
        if name not in arguments:
            known = ", ".join(arguments) or "none"
            raise DeclarationError(f"{what}={name!r:.60} names no argument of the task; it takes: {known}")


def key_in(text: str) -> object:
    """Parse a key as JSON, such as 17. Return any other text unchanged."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def may_show(key: KeyOf | None, hidden: frozenset[str]) -> bool:
    """Return whether a key may show a `hidden` argument. A function or a key of all arguments may show any of them."""
    if key is None or callable(key):
        return bool(hidden)
    return not hidden.isdisjoint((key,) if isinstance(key, str) else key)
