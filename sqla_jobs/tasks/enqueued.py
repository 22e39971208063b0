"""`Enqueued`, the return value of `enqueue_many`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Enqueued:
    """What has become of the items of `enqueue_many`. It is true if any item became a new job."""

    inserted: int = 0
    """Number of items that became new jobs."""
    replaced: int = 0
    """Number of items that changed a waiting job (`on_conflict="replace"`)."""
    skipped: int = 0
    """Number of items that changed nothing, since another job has their key."""

    def __bool__(self) -> bool:
        return self.inserted > 0

    @classmethod
    def total(cls, parts: Iterable[Self]) -> Self:
        """Return the sum of all parts."""
        known = [(part.inserted, part.replaced, part.skipped) for part in parts]
        return cls(*map(sum, zip(*known, strict=True)))
