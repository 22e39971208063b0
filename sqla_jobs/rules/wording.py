"""Texts for messages: numbers, durations, similar names, and addresses of the docs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

NOTHING = "\N{EN DASH}"
"""Shown for a missing value."""
UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def moment(at: datetime) -> str:
    """Return a time in UTC as human-readable text."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def duration(seconds: float | None) -> str:
    """Return a duration in at most two units: `3 h 12 min`, `4.2 s`, `15 ms`."""
    if seconds is None:
        return NOTHING
    if seconds < 0:
        return f"-{duration(-seconds)}"
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f} ms" if seconds >= 0.0995 or not seconds else f"{1000 * seconds:.2g} ms"
    if seconds < 9.95:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    left, parts = round(seconds), list[str]()
    for size, unit in UNITS:
        if left >= size or parts:
            count, left = divmod(left, size)
            if count:
                parts.append(f"{count} {unit}")
            if len(parts) == 2 or (parts and not count):
                break
    return " ".join(parts)


def percent(share: float) -> str:
    """Return a share from 0 to 1 as `47 %`, `< 1 %` or `> 99 %`. Only 0 and 1 are shown as 0 % and 100 %."""
    if 0 < share < 0.01:
        return "< 1 %"
    return "> 99 %" if 0.99 < share < 1 else f"{100 * share:.0f} %"


def offset(seconds: float | None) -> str:
    """Return how far a clock is ahead or behind: `+10 ms`, `-3 s`, or `0` below 5 ms."""
    if seconds is None:
        return NOTHING
    rounded = round(seconds, 2)
    return f"+{duration(rounded)}".replace("+-", "-") if rounded else "0"


@dataclass(frozen=True, slots=True)
class Count:
    """A number that is exact or a minimum. It is true unless it is 0."""

    number: int
    is_least: bool = False
    """True if counting stopped at `number`, so that there may be more."""

    def __bool__(self) -> bool:
        return self.number > 0

    def __str__(self) -> str:
        return f"{self.number}{'+' if self.is_least else ''}"

    @property
    def in_words(self) -> str:
        """The number for a sentence, such as: at least 10,000."""
        return f"{'at least ' if self.is_least else ''}{self.number:,}"


def plural(count: int | Count, noun: str) -> str:
    """Return a number with a noun: `1 job`, `2 jobs`, `at least 10,000 jobs`."""
    known = _known(count)
    return f"{known.in_words} {noun}{'' if known.number == 1 else 's'}"


def they_are(count: int | Count, noun: str) -> str:
    """Return a number with a noun and a verb: `1 job is`, `2 jobs are`."""
    known = _known(count)
    return f"{plural(known, noun)} {'is' if known.number == 1 else 'are'}"


def _known(count: int | Count) -> Count:
    return count if isinstance(count, Count) else Count(count)


_LONGEST_NAME = 200


def near_names(given: str, known: Iterable[str]) -> list[str]:
    """Return the known names similar to `given`, the most similar first. The end of a long name is ignored."""
    from difflib import get_close_matches  # imported late, since each worker imports this module

    return get_close_matches(given[:_LONGEST_NAME], list(known))


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return the end of an error message, `; did you mean 'mail'?`; an empty string if no known name is similar."""
    near = near_names(given, known)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


REPOSITORY = "https://github.com/sqla-jobs/sqla-jobs"
"""The address of the repository. `[project.urls]` and the README's links use it, too."""


def page(name: str) -> str:
    """Return the address of a page of the documentation, for a message. An installed package contains no docs."""
    return f"{REPOSITORY}/blob/main/docs/{name}.md"
