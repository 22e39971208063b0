"""The check of options by pydantic, and the types that several kinds of options share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import timedelta
from functools import lru_cache
from typing import Annotated, Any, cast

from pydantic import AfterValidator, Field, PlainValidator, TypeAdapter, ValidationError

from sqla_jobs.errors import JobsError
from sqla_jobs.queries.values import PRIORITIES
from sqla_jobs.rules.value_checks import check_queue, check_seconds
from sqla_jobs.rules.wording import did_you_mean

QueueName = Annotated[str, AfterValidator(check_queue)]
Priority = Annotated[int, Field(ge=PRIORITIES[0], le=PRIORITIES[-1])]
MaxAttempts = Annotated[int, Field(ge=1, le=1_000_000)]
MaxLost = Annotated[int, Field(ge=1, le=1_000)]


def seconds(option: str, least: float = 0.0) -> PlainValidator:
    """Return the validator of a length of time, which makes a float of it."""
    return PlainValidator(lambda length: check_seconds(option, length, least=least))


def as_timedelta(option: str) -> PlainValidator:
    """Return the validator of a length of time, which makes a timedelta of it."""
    return PlainValidator(lambda length: timedelta(seconds=check_seconds(option, length)))


def checked(kind: type[Any], options: Mapping[str, Any], whose: str, error: type[JobsError]) -> dict[str, Any]:
    """Return the options that are not None, checked as `kind`, a TypedDict.

    Raises `error`, whose message begins with `whose`.
    """
    given = {name: value for name, value in options.items() if value is not None}
    try:
        return cast("dict[str, Any]", _adapter(kind).validate_python(given))  # type: ignore[arg-type]  # a class has a hash
    except ValidationError as wrong:
        message = _sentence(wrong, kind.__annotations__)
    except JobsError as wrong:
        message = str(wrong)
    raise error(f"{whose}: {message}")


@lru_cache
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _sentence(wrong: ValidationError, known: Iterable[str]) -> str:
    """Return what is wrong with the first of the options that pydantic refuses, and the value that it got."""
    found = wrong.errors(include_url=False, include_context=False)
    name, value = str(found[0]["loc"][0]), found[0]["input"]
    if found[0]["type"] == "extra_forbidden":
        return f"unknown option {name!r}; valid options: {', '.join(known)}{did_you_mean(name, known)}"
    said = (re.sub(r"^\w+ (?=should )", "", one["msg"]) for one in found if one["loc"][0] == name)
    return f"{name} {' or '.join(dict.fromkeys(said))}, got {value!r:.60}"
