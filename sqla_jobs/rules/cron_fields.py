"""The fields of a cron rule. Each field expands its text to the numbers that the text names.

The grammar is that of crontab(5), without random times and with three more forms: `5/15` (from 5 to the end in steps of
15), `L` (the last day of a month; `L5` is the last Friday) and `5#2` (the second Friday).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_ITEM = re.compile(r"(\*|[0-9]{1,2}|[A-Z]{3})(?:-([0-9]{1,2}|[A-Z]{3}))?(?:/([0-9]{1,3}))?", re.ASCII)
_OF_MONTH = re.compile(r"(L)?([0-7]|[A-Z]{3})(?:#([1-5]))?", re.ASCII)


@dataclass(frozen=True)
class Field:
    """A field of a rule: its range of numbers, and the names of the first numbers in it."""

    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()
    has_last_day: bool = False
    has_weeks: bool = False

    @property
    def range(self) -> str:
        """The allowed values, as text for error messages."""
        named = f" or {self.names[0]}-{self.names[-1]}" if self.names else ""
        special = " or L" if self.has_last_day else " or L5 or 5#2" if self.has_weeks else ""
        return f"{self.low}-{self.high}{named}{special}"

    def expand(self, text: str) -> str:
        """Return the sorted numbers that `text` names, with commas, or `*`. Raises `ValueError` with the reason."""
        text = text.upper()
        if text == "*" or (text == "?" and (self.has_last_day or self.has_weeks)):
            return "*"
        items = text.split(",")
        if "*" in items:
            rest = ",".join(item for item in items if item != "*")
            raise ValueError(f"a * makes the rest of the list redundant: write * alone, or {rest or '*'} alone")
        numbers: set[int] = set()
        special: list[str] = []
        for item in items:
            if found := self._special(item):
                special.append(found)
            else:
                numbers.update(self._numbers(item))
        if self.has_weeks:
            numbers = {number % 7 for number in numbers}
            if special and numbers:
                raise ValueError("a list cannot mix days of every week, such as 5, with those of one week, such as 5#2")
        return ",".join([*map(str, sorted(numbers)), *sorted(set(special))])

    def _special(self, item: str) -> str | None:
        """Return an item such as `L`, `L5` or `5#2` in croniter's notation; None for other items."""
        if self.has_last_day and item == "L":
            return "l"
        found = _OF_MONTH.fullmatch(item) if self.has_weeks else None
        if found is None or bool(found[1]) == bool(found[3]):
            return None
        day = self._number(found[2]) % 7
        return f"l{day}" if found[1] else f"{day}#{found[3]}"

    def _numbers(self, item: str) -> Iterator[int]:
        found = _ITEM.fullmatch(item)
        if found is None or (found[1] == "*" and (found[2] or not found[3])):
            raise ValueError(self._usage)
        first, last, step = found.groups()
        low = self.low if first == "*" else self._number(first)
        high = self._number(last) if last else self.high if step else low
        if step and int(step) == 0:
            raise ValueError(f"{self._usage}; a step is at least 1")
        if low <= high:
            yield from range(low, high + 1, int(step or 1))
            return
        if not (first.isalpha() and last.isalpha()):
            raise ValueError(f"the range runs backwards: write {self._around(low, high)}")
        size = len(self.names)
        for number in range(low, high + size + 1, int(step or 1)):
            yield (number - self.low) % size + self.low

    def _number(self, text: str) -> int:
        if text in self.names:
            return self.names.index(text) + self.low
        if not text.isdecimal() or not self.low <= int(text) <= self.high:
            raise ValueError(self._usage)
        return int(text)

    def _around(self, low: int, high: int) -> str:
        """Return the ranges that a backward range probably means."""
        end = 6 if self.has_weeks else self.high
        ends = [(low, end), (self.low, high)] if low <= end else [(self.low, high), (low, low)]
        return ",".join(f"{first}-{last}" if first < last else str(first) for first, last in ends)

    @property
    def _usage(self) -> str:
        return f"{self.range}, *, lists and ranges of them, and steps such as */5"


DAY = Field("day of month", 1, 31, has_last_day=True)
MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
WEEKDAY = Field("day of week", 0, 7, ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"), has_weeks=True)
FIELDS = (
    Field("second", 0, 59),
    Field("minute", 0, 59),
    Field("hour", 0, 23),
    DAY,
    Field("month", 1, 12, MONTHS),
    WEEKDAY,
)
