"""The rule for a task's unique jobs: a policy, and the function that makes keys."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic_core import from_json

from sqla_jobs.rules.unique import KeyMaker, Unique


class Keyed(NamedTuple):
    """A job's arguments as JSON, with the job's unique key."""

    key: str | None
    """None for a job that is not unique."""
    args: str


@dataclass(frozen=True, slots=True)
class UniqueRule:
    """A policy, and the function that makes the key of a job from its stored arguments."""

    policy: Unique
    key_of: Callable[[Mapping[str, Any]], str | None]
    """Returns None for a job that is not unique."""

    def keyed(self, encoded: bytes) -> Keyed:
        """Return a job's arguments with the job's unique key. Raises `ArgumentsError` if the key cannot be made."""
        return Keyed(self.key_of(from_json(encoded)), encoded.decode())


def declared_rule(
    task: str,
    unique: Unique | None,
    arguments: Collection[str],
    sensitive: frozenset[str],
    opened: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
) -> UniqueRule | None:
    """Return the rule for a task declared with `unique=`. Raises `DeclarationError`.

    `opened` decrypts the secrets in stored arguments, if there may be any.
    """
    if unique is None:
        return None
    key_of = KeyMaker(task, unique.key, frozenset(arguments), sensitive)
    return UniqueRule(unique, key_of if opened is None else lambda stored: key_of(opened(stored)))


def literal_rule(policy: Unique, key: str) -> UniqueRule:
    """Return the rule for jobs with a literal key."""
    return UniqueRule(policy, lambda _: key)
