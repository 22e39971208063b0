"""The name of the database (shard) in which a thread or run works, if the jobs are in several."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple, TypeVar

T = TypeVar("T")

SHARD_NAME = re.compile(r"[\w.-]{1,40}", re.ASCII)
SHARD: ContextVar[str] = ContextVar("sqla_jobs.shard", default="")
"""The name of the database, for log lines and runs. It is empty where there is only one."""
_COMMAND = re.compile(r"\bsqla-jobs (?:(?:limit|schedule) )?[a-z]+(?:-[a-z]+)*\b(?! --database-url)")
"""A command in a text, if it works on one of several databases."""


class Where(NamedTuple):
    """The database or databases that a command line names."""

    urls: Mapping[str, str] = {}
    """URLs by name. The name of a single URL may be empty. Without any, the application's own databases are meant."""
    shard: str | None = None
    """The only database to work on, by name."""


@contextmanager
def shard_named(name: str) -> Generator[None]:
    """Give the database of this thread this name, in the block."""
    token = SHARD.set(name)
    try:
        yield
    finally:
        SHARD.reset(token)


def working_in(name: str, call: Callable[[], T]) -> T:
    """Call a function. Meanwhile, the database of this thread has this name."""
    with shard_named(name):
        return call()


def with_shard(text: str, name: str | None) -> str:
    """Return the text with `--shard NAME` in each command, if the database has a name."""
    return _COMMAND.sub(rf"\g<0> --shard {name}", text) if name else text


def of_shard(call: Callable[..., None]) -> Callable[..., None]:
    """Return a function for a new thread, in which the database has the same name as here."""
    name = SHARD.get()

    def named(*args: object) -> None:
        SHARD.set(name)
        call(*args)

    return named if name else call
