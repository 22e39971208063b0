"""Label values: a bounded number of them."""

from __future__ import annotations

from collections.abc import Iterator

OTHER = "other"
"""Stands for all names that come after the first `MOST`."""
MOST = 100
_LONGEST = 200


class Labels:
    """The first hundred names that come are labels, and stay so: a series never changes its meaning."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def __iter__(self) -> Iterator[str]:
        return iter([*self._known.values()])  # a copy: two scrapes may come at once

    def __getitem__(self, name: str) -> str:
        label = self._known.get(name)
        if label is not None:
            return label
        if len(self._known) >= MOST:
            return OTHER
        return self._known.setdefault(name, name[:_LONGEST])
