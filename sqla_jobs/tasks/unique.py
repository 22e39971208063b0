"""The rule for a task's unique jobs: a policy, and the function that makes keys."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic_core import from_json

from sqla_jobs.rules.unique import KeyMaker, Unique
from sqla_jobs.tasks.encryption import Encryption


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
    encryption: Encryption | None,
) -> UniqueRule | None:
    """Return the rule for a task declared with `unique=`. Raises `DeclarationError`."""
    if unique is None:
        return None
    key = unique.key
    if encryption is not None:
        key = encryption.key(f"{task}: the key of its Unique", key, arguments)
    return UniqueRule(unique, KeyMaker(task, key, frozenset(arguments), sensitive))


def literal_rule(policy: Unique, key: str) -> UniqueRule:
    """Return the rule for jobs with a literal key."""
    return UniqueRule(policy, lambda _: key)
