"""Mutants, and those among them that no test can kill."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

EQUIVALENT = Path(__file__).parent / "equivalent.json"


class Place(NamedTuple):
    """A change, found again each time."""

    statement: str
    """The statement, or the function."""
    change: str
    nth: int
    """Which of those that read the same."""


def reason_for(place: Place) -> str | None:
    """Why no test can kill that mutant, if it is on the list."""
    for one in _equivalent():
        reads_so = re.fullmatch(one["statement"], place.statement) and re.search(one["change"], place.change)
        if reads_so and one.get("nth", place.nth) == place.nth:
            return str(one["why"])
    return None


@cache
def _equivalent() -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads(EQUIVALENT.read_text(encoding="utf-8"))
    return listed
