"""Single values as JSON: the results of steps, and the payloads of signals."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, ClassVar

import pydantic
from pydantic import TypeAdapter
from pydantic_core import from_json, to_json

from sqla_jobs.errors import ArgumentsError, DeclarationError, UnstorableResult
from sqla_jobs.rules.value_checks import check_json
from sqla_jobs.tasks.arguments import adapter_of, as_jsonb, is_same, too_much
from sqla_jobs.tasks.entities import entity_of, refuse_rows
from sqla_jobs.tasks.secret_type import MARKED
from sqla_jobs.tasks.signature import resolve

_OPENING, _CLOSING = b'{"result":', b"}"
_OF_OTHER_CODE = ": it was stored by other code. Take a type that accepts it, or another name"
DISCARDED: str = ", and is discarded: send another"
"""The end of the error message about a payload that is discarded because it does not fit."""


class ValueCodec:
    """Encodes values of one type as JSON text, and decodes them. `what` names the value in error messages."""

    _context: ClassVar[str | None] = None

    def __init__(self, what: str, expected: Any) -> None:
        """Prepare for values of the type `expected`. Raises `ArgumentsError` for a type that JSON cannot hold."""
        self._what = what
        self._expected = expected
        if entity_of(expected):
            raise ArgumentsError(
                f"{what}: the type {expected!r:.200} cannot be stored as JSON: take the key of the row in place of the "
                "row"
            )
        try:
            self._adapter = _adapter(expected)
        except DeclarationError as error:
            raise ArgumentsError(f"{what}: {error}") from None
        except Exception as error:  # noqa: BLE001 - many kinds are raised; the message shows the first line
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise ArgumentsError(
                f"{what}: the type {expected!r:.200} cannot be stored as JSON: {first}. Take one that pydantic knows, "
                "such as the key of a row in place of the row"
            ) from None

    def encode(self, value: Any) -> str:
        """Return the JSON text of `value`. Raises `UnstorableResult` if it would not be read back as it is."""
        try:
            refuse_rows(self._what, value, remedy="return its key")
        except ArgumentsError as error:
            raise UnstorableResult(str(error)) from None
        try:
            whole = self._dump(value, self._context)
            back = self._adapter.validator.validate_json(as_jsonb(whole))["result"]
        except (ValueError, TypeError, RecursionError) as error:  # pydantic's errors are ValueErrors
            said = _fault(error) if isinstance(error, pydantic.ValidationError) else str(error)
            raise UnstorableResult(f"{self._what}, a {type(value).__name__}, cannot be stored: {said}") from None
        encoded = whole[len(_OPENING) : -len(_CLOSING)]
        if not is_same(back, value):
            raise UnstorableResult(
                f"{self._what}, a {type(value).__name__}, does not read back from JSON as it was: annotate what the "
                "function returns with the exact type, or return plain JSON"
            )
        if fault := too_much(encoded):
            raise UnstorableResult(f"{self._what} {fault}")
        return encoded.decode()

    def _dump(self, value: Any, context: str | None) -> bytes:
        return self._adapter.serializer.to_json(
            {"result": value}, round_trip=True, by_alias=True, warnings=False, context=context
        )

    def decode(self, text: str | None, *, end: str = _OF_OTHER_CODE) -> Any:
        """Return the value of stored JSON text; None stands for null.

        If the value does not fit the type, raises an `ArgumentsError` whose message ends with `end`.
        """
        try:
            return self._adapter.validator.validate_json(_OPENING + (text or "null").encode() + _CLOSING)["result"]
        except pydantic.ValidationError as error:
            raise ArgumentsError(
                f"{self._what} cannot be read as {self._expected!r:.200} ({_fault(error)}){end}"
            ) from None


def returned_type(function: Callable[..., Any]) -> Any:
    """Return a function's annotated return type, or `Any` if there is none. For a class, return the class itself.

    Raises `DeclarationError` for an annotation that cannot be resolved.
    """
    while isinstance(function, partial):
        function = function.func
    if isinstance(function, type):
        return function
    if not inspect.isroutine(function):
        function = type(function).__call__
    annotation = getattr(inspect.unwrap(function), "__annotations__", {}).get("return", inspect.Parameter.empty)
    return resolve(getattr(function, "__func__", function), "return", annotation)


def encode_payload(what: str, value: Any) -> str:
    """Return a signal's payload as JSON text, encoded by pydantic, with its secrets marked. Raises `ArgumentsError`."""
    refuse_rows(what, value, remedy="send its key")
    try:
        encoded = to_json(
            value, by_alias=True, round_trip=True, inf_nan_mode="constants", bytes_mode="base64", context=MARKED
        )
        check_json(what, from_json(encoded, allow_inf_nan=False))
    except (ValueError, TypeError, RecursionError) as error:
        raise ArgumentsError(f"{what}, a {type(value).__name__}, cannot be written as JSON: {error}") from None
    if fault := too_much(encoded):
        raise ArgumentsError(f"{what} {fault}")
    return encoded.decode()


def _adapter(expected: Any) -> TypeAdapter[dict[str, Any]]:
    try:
        return _cached(expected)
    except TypeError:  # the type cannot be hashed
        return adapter_of({"result": expected})


@lru_cache(maxsize=256)
def _cached(expected: Any) -> TypeAdapter[dict[str, Any]]:
    return adapter_of({"result": expected})


def _fault(error: pydantic.ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    path = ".".join(str(part) for part in first["loc"][1:])
    return f"{path}: {first['msg']}" if path else first["msg"]
