"""`Enqueued`, the return value of `enqueue_many`."""

from __future__ import annotations

from collections.abc import Iterable


class Enqueued(int):
    """The number of inserted jobs. `replaced` and `skipped` count the items whose unique key was taken."""

    inserted: int
    """Number of items that became new jobs: the value of this integer itself."""
    replaced: int
    """Number of items that changed a waiting job (`on_conflict="replace"`)."""
    skipped: int
    """Number of items that changed nothing, since another job has their key."""

    def __new__(cls, inserted: int = 0, *, replaced: int = 0, skipped: int = 0) -> Enqueued:
        """Create the number from `inserted`."""
        number = super().__new__(cls, inserted)
        number.inserted, number.replaced, number.skipped = inserted, replaced, skipped
        return number

    def __repr__(self) -> str:
        """Return all three counts, as a failed `assert` shows them."""
        return f"Enqueued(inserted={self.inserted}, replaced={self.replaced}, skipped={self.skipped})"

    def __str__(self) -> str:
        """Return the number itself."""
        return int.__repr__(self)

    @classmethod
    def total(cls, parts: Iterable[Enqueued]) -> Enqueued:
        """Return the sum of all parts."""
        known = list(parts)
        return cls(
            sum(known), replaced=sum(part.replaced for part in known), skipped=sum(part.skipped for part in known)
        )
