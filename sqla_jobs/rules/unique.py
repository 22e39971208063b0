"""Unique jobs: the key of a job, and the effect of an enqueue that finds a live job with its key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, get_args, overload

from sqla_jobs.errors import ArgumentsError, DeclarationError
from sqla_jobs.rules.keys import KeyOf, argument_names, as_json, check_arguments, may_show
from sqla_jobs.rules.value_checks import INSTANT, check_json, check_seconds

OnConflict = Literal["return", "raise", "replace"]

RESERVED = "unique:"
"""The beginning of keys made from arguments. Literal keys must not begin with it."""
MAX_KEY = 500
"""Maximum length of a key in characters."""
_WORDS: tuple[str, ...] = get_args(OnConflict)
_MISSING: Any = object()


@dataclass(frozen=True, init=False)
class Unique:
    """Allows at most one live job (blocked, scheduled, queued or running) for each key.

    - `key`: the name of an argument, a list of names, or a callable that gets a mapping of the stored arguments and
      returns a JSON-serializable value, or None for a job that is not unique. `key=None` stands for all arguments. An
      empty list allows one job of the task.
    - `on_conflict`: what an enqueue does if the key is taken: "return" the live job, "raise" `JobExists`, or "replace"
      the arguments, priority, queue and run_at of a waiting job.
    - `max_delay`: required with "replace": seconds or a timedelta, counted from the first enqueue. Replacements do not
      delay the job beyond it. With None, the delay is unlimited.
    - `per`: seconds or a timedelta, not with "replace". Each period of this length allows one job, whatever its
      outcome. Periods follow the server's clock and are aligned to 1970-01-01 UTC.

    Raises `DeclarationError` for invalid values.
    """

    key: KeyOf | None
    on_conflict: OnConflict
    max_delay: float | None
    per: float | None

    @overload
    def __init__(
        self,
        key: KeyOf | None = None,
        *,
        on_conflict: Literal["return", "raise"] = "return",
        per: float | timedelta | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self,
        key: KeyOf | None = None,
        *,
        on_conflict: Literal["replace"],
        max_delay: float | timedelta | None,
    ) -> None: ...
    def __init__(
        self,
        key: KeyOf | None = None,
        *,
        on_conflict: OnConflict = "return",
        max_delay: float | timedelta | None = _MISSING,
        per: float | timedelta | None = None,
    ) -> None:
        if on_conflict not in _WORDS:
            raise DeclarationError(f"on_conflict must be one of {', '.join(_WORDS)}, got {on_conflict!r:.60}")
        if on_conflict == "replace" and max_delay is _MISSING:
            raise DeclarationError(
                "on_conflict='replace' needs max_delay=: the seconds after the first enqueue beyond which replacements "
                "do not delay the job, such as max_delay=600; or None for no bound, with which a job that is "
                "replaced again and again never starts"
            )
        if on_conflict != "replace" and max_delay is not _MISSING:
            raise DeclarationError(
                f"max_delay={max_delay!r:.60} is only for on_conflict='replace', and on_conflict is "
                f"{on_conflict!r}: leave it out, or write on_conflict='replace'"
            )
        if on_conflict == "replace" and per is not None:
            raise DeclarationError(f"per={per!r:.60} is not for on_conflict='replace': leave one of them out")
        values = {
            "key": key if key is None or callable(key) else argument_names("key", key),
            "on_conflict": on_conflict,
            "max_delay": _length("max_delay", None if max_delay is _MISSING else max_delay, least=0.0),
            "per": _length("per", per, least=INSTANT),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def replaces(self) -> bool:
        """True if an enqueue changes a waiting job with the key."""
        return self.on_conflict == "replace"


def _length(what: str, length: float | timedelta | None, *, least: float) -> float | None:
    return None if length is None else check_seconds(what, length, least=least, error=DeclarationError)


@dataclass(frozen=True)
class KeyMaker:
    """Makes the keys of one task's jobs. Raises `DeclarationError` if `key` names no argument of the task."""

    task: str
    key: KeyOf | None
    arguments: frozenset[str]
    sensitive: frozenset[str]

    def __post_init__(self) -> None:
        if isinstance(self.key, tuple):
            check_arguments(f"{self.task}: key", self.key, sorted(self.arguments))

    def __call__(self, arguments: Mapping[str, Any]) -> str | None:
        """Return the key of a job with these stored arguments. Raises `ArgumentsError` if the key cannot be JSON.

        A key that is long, or that could show a sensitive argument, is replaced by its hash. The result is None, for a
        job that is not unique, if `key` is a callable that returns None.
        """
        chosen = self._chosen(arguments)
        if chosen is None:
            return None
        said = self._json(chosen)
        plain = f"{RESERVED}{said}"
        if len(plain) <= MAX_KEY and not may_show(self.key, self.sensitive):
            return plain
        return f"{RESERVED}sha256:{hashlib.sha256(said.encode()).hexdigest()}:{self.task}"

    def _chosen(self, arguments: Mapping[str, Any]) -> Any:
        if callable(self.key):
            try:
                return self.key(arguments)
            except Exception as error:
                given = ", ".join(arguments) or "none"
                error.add_note(f"{self.task}: the function key= of its Unique got the stored arguments: {given}")
                raise
        names = arguments if self.key is None else self.key
        return {name: arguments[name] for name in names if name in arguments}

    def _json(self, chosen: Any) -> str:
        what = f"{self.task}: the value of the key= of its Unique"
        try:
            said = as_json([self.task, chosen], ensure_ascii=False)
            check_json(what, json.loads(said))
        except (TypeError, ValueError, RecursionError) as error:
            raise ArgumentsError(
                f"{what} must be JSON-able, such as a text or a list of numbers, got {type(chosen).__name__}: {error}"
            ) from None
        return said
