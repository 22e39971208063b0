"""The type of a secret."""

from __future__ import annotations

from secrets import token_hex
from typing import Annotated, Any, TypeVar

from pydantic import SerializationInfo, SerializerFunctionWrapHandler, WrapSerializer

from sqla_jobs.rules.redaction import ENCRYPTED
from sqla_jobs.tasks.type_parts import parts_of

PLAIN, MARKED = "sqla_jobs plain", "sqla_jobs marked"
"""How secrets are written as JSON, as pydantic's serialization context: as they are, or marked to be encrypted."""
MARK = token_hex(16)
"""The one name in an object that holds a secret which is to be encrypted. No value of an application has it."""


def _write(value: Any, write: SerializerFunctionWrapHandler, info: SerializationInfo) -> Any:
    """Write a secret as JSON: as it is or marked for this library, and hidden for everybody else."""
    if info.context == PLAIN:
        return write(value)
    return {MARK: write(value)} if info.context == MARKED else ENCRYPTED


T = TypeVar("T")
_SECRET = WrapSerializer(_write, when_used="json")
Encrypted = Annotated[T, _SECRET]
"""A secret, stored as a token that only processes with a key can read. `Encrypted[str]` is `str` for type checkers.

It is allowed as the type of a task's argument and of what a task or a step returns, and inside of these types: in
containers, dataclasses and pydantic models. Such an argument is sensitive, too. The token is a Fernet token of the
value's JSON, of the task's name and of the argument's name.
"""


def holds_secret(annotation: Any) -> bool:
    """Return whether a type is or contains `Encrypted`."""
    return any(part is _SECRET for part in parts_of(annotation))
