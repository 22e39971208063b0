"""All that there is in the model in `model_floors`, and how a database changes its jobs."""

from __future__ import annotations

from typing import Any, NamedTuple


class Job(NamedTuple):
    """`new`; `open`: has a position, and is not committed; then queued, scheduled for its retry, running, ended."""

    group: int
    state: str
    is_gated: bool
    priority: int = 0
    position: int = 0
    run: int = 0
    transaction: int = 0
    has_begun: bool = False
    is_late: bool = False
    """It was given its gate or its priority after the last sweep: until the next one it may be overlooked."""
    has_waited: bool = False
    """Since before the last sweep, as it is."""

    def is_behind(self, group: int) -> bool:
        """Whether the gate of this group is one of its own."""
        return self.is_gated and self.group == group

    def waits_behind(self, group: int) -> bool:
        """Whether it may be claimed from there."""
        return self.state == "queued" and self.is_behind(group)


class Database(NamedTuple):
    """The jobs, and what is given out next."""

    jobs: tuple[Job, ...]
    position: int = 100
    run: int = 100
    transaction: int = 100

    def but(self, n: int, **changed: Any) -> Database:
        """With job `n` changed."""
        return self._replace(jobs=(*self.jobs[:n], self.jobs[n]._replace(**changed), *self.jobs[n + 1 :]))

    def queued(self, n: int) -> Database:
        """With job `n` at the end of its queue."""
        ended = self.but(n, state="queued", position=self.position, is_late=False)
        return ended._replace(position=self.position + 1)

    def running(self, n: int) -> Database:
        """With job `n` claimed."""
        begun = self.but(n, state="running", run=self.run, has_begun=True, is_late=False, has_waited=False)
        return begun._replace(run=self.run + 1)


class State(NamedTuple):
    """All that there is."""

    db: Database
    disk: Database
    floors: bytes
    look: bytes = b""
    """The look that is under way: whether it is a sweep, its floors, and then what it brought."""
    cursor: int = -1
    is_due: bool = False
    """It is time for a sweep."""
    faults: int = 0
    again: int = 0
    others: int = 0
