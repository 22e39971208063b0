"""How the jobs of a task are unique: a policy, and what makes their keys."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic_core import from_json

from sqla_jobs.errors import DeclarationError
from sqla_jobs.rules.unique import KeyMaker, Unique


class Keyed(NamedTuple):
    """The arguments of a job as JSON, with its key."""

    key: str
    args: str


@dataclass(frozen=True, slots=True)
class UniqueRule:
    """A policy, and what makes the key of a job from its arguments as stored."""

    policy: Unique
    key_of: Callable[[Mapping[str, Any]], str]

    def keyed(self, encoded: bytes) -> Keyed:
        """The arguments of a job with its key. Raises `ArgumentsError` where that is no JSON."""
        return Keyed(self.key_of(from_json(encoded)), encoded.decode())


def declared_rule(
    task: str, unique: object, arguments: Collection[str], sensitive: frozenset[str]
) -> UniqueRule | None:
    """The rule of a task that was declared `unique=`. Raises `DeclarationError`."""
    if unique is None:
        return None
    if not isinstance(unique, Unique):
        raise DeclarationError(f"{task}: unique must be a Unique, such as Unique(key='account'), got {unique!r:.60}")
    return UniqueRule(unique, KeyMaker(task, unique.key, frozenset(arguments), sensitive))


def literal_rule(policy: Unique, key: str) -> UniqueRule:
    """The rule of jobs that have this very key."""
    return UniqueRule(policy, lambda _: key)
