"""What `enqueue_many` returns."""

from __future__ import annotations

from collections.abc import Iterable


class Enqueued(int):
    """How many jobs were inserted, as a number; and what became of the items that found their unique key taken."""

    replaced: int
    """Items that changed a waiting job (`on_conflict="replace"` or `"update"`)."""
    left_out: int
    """Items that changed nothing, since another job has their key."""

    def __new__(cls, inserted: int = 0, *, replaced: int = 0, left_out: int = 0) -> Enqueued:
        """For `inserted` jobs."""
        number = super().__new__(cls, inserted)
        number.replaced, number.left_out = replaced, left_out
        return number

    @classmethod
    def total(cls, parts: Iterable[Enqueued]) -> Enqueued:
        """All parts together."""
        known = list(parts)
        return cls(
            sum(known), replaced=sum(part.replaced for part in known), left_out=sum(part.left_out for part in known)
        )
