"""The name of the database (shard) in which a thread or run works, if its process works in several."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")

SHARD: ContextVar[str] = ContextVar("sqla_jobs.shard", default="")
"""The name of the database, for log lines and runs. It is empty where there is only one."""


def in_shard(name: str, call: Callable[[], T]) -> T:
    """Call a function. Meanwhile, the database of this thread has this name."""
    token = SHARD.set(name)
    try:
        return call()
    finally:
        SHARD.reset(token)


def of_shard(call: Callable[..., None]) -> Callable[..., None]:
    """Return a function for a new thread, in which the database has the same name as here."""
    name = SHARD.get()

    def named(*args: object) -> None:
        SHARD.set(name)
        call(*args)

    return named if name else call
