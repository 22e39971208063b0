"""A claimed job in the process that claimed it."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property

from sqla_jobs.execution.interrupt import CancelRequested, Interrupt, Interruptible, LeaseGone
from sqla_jobs.execution.shared_memory import RunSlot
from sqla_jobs.queries import Claimed, RunEnd
from sqla_jobs.rules.outcomes import Outcome, storable
from sqla_jobs.rules.redaction import NOTHING, Secrets
from sqla_jobs.tasks.context import RunContext
from sqla_jobs.tasks.declaration import Declaration

_PROGRESS = 1000
"""Characters kept of a progress message."""


class Attempt:
    """From the claim until its end is stored. All moments are of `time.monotonic()`."""

    started_at: float | None = None
    has_begun = False
    """Whether it was told that it begins, where that is of interest."""
    is_committed = False
    """Its end was stored by the transaction of its task."""
    context: RunContext | None = None
    progress: tuple[float, str | None] | None = None
    """The last that the run reported; stored with its end, whatever became of it before."""
    sent_progress: tuple[float, str | None] | None = None
    """What of it was sent to the database while it runs, where a row that somebody holds locked is passed over."""
    is_silent = False
    """Progress is stored with the end alone: else it would change the row that the run's own transaction is to change
    under a stricter isolation."""
    is_withdrawn: bool = False
    """It does not begin any more, and is given back."""
    is_over: bool = False
    """Ended, and its end is on its way to the database."""
    deadline: float | None = None
    cancel_requested: bool = False
    slot: RunSlot | None = None
    """Where a parent process sees that it was begun."""
    declaration: Declaration | None = None
    """How its task is declared, once that is known."""
    progressed: Callable[[], None] | None = None
    """Called when its task has reported progress."""
    body: Interruptible | None = None
    """What runs its own code."""

    def __init__(self, job: Claimed, claimed_at: float, *, asked_at: float = 0.0) -> None:
        self.job = job
        self.claimed_at = claimed_at
        """When the answer of the claim came; the server may have committed it a while before, but after `asked_at`."""
        self.asked_at = asked_at

    @cached_property
    def secrets(self) -> Secrets:
        """What nothing that is told of it may show."""
        return NOTHING if self.declaration is None else self.declaration.secrets(self.job.args)

    @property
    def waited(self) -> float:
        """Seconds that it was due before it began."""
        return self.job.waited + (self.started_at or self.claimed_at) - self.claimed_at

    @property
    def is_running(self) -> bool:
        """Begun, and not over."""
        return self.started_at is not None and not self.is_over

    def __str__(self) -> str:
        return f"job {self.job.job_id} {self.job.task} attempt {self.job.attempt}"

    def begin(self, body: Interruptible, slot: RunSlot | None) -> bool:
        """Start the attempt. It is charged from here on if this process dies.

        False: it may not, since the parent process has given back what this one held before.
        """
        started_at = time.monotonic()
        if slot is not None:
            slot.begin(self.job.job_id, self.job.run_id, self.claimed_at, started_at)
            if self.asked_at <= slot.revoked_at:
                slot.clear()
                return False
        self.started_at, self.body, self.slot = started_at, body, slot
        return True

    def conclude(self) -> None:
        """It is over, and its end on its way to the database."""
        self.is_over, self.body = True, None
        if self.slot is not None:
            self.slot.end()

    def cancel(self) -> None:
        """Somebody cancelled the job: it does not start any more, or is interrupted."""
        self.cancel_requested = True
        if self.context is not None:
            self.context.cancel_requested = True
        self.interrupt(CancelRequested)

    def lose(self) -> None:
        """Its process was taken for dead: what it does from now on is in vain."""
        if self.context is not None:
            self.context.cancel_requested = True
        self.interrupt(LeaseGone)

    def interrupt(self, kind: type[Interrupt]) -> None:
        """Raise `kind` in its code, if that runs at this moment."""
        if (body := self.body) is not None:  # read once: it is gone when the run ends
            body.interrupt(self, kind)

    def publish(self, fraction: float, message: str | None) -> None:
        said = None if message is None else storable(self.secrets.text(str(message)), _PROGRESS)
        self.progress = (fraction, said)
        if self.progressed is not None:
            self.progressed()

    def ended(self, outcome: Outcome) -> RunEnd:
        """The end of this attempt, now."""
        started = self.started_at or self.claimed_at
        ended = time.monotonic() - self.claimed_at
        # what RunEnd(…) does, but for a call of a function in Python
        return tuple.__new__(RunEnd, (self.job, outcome, started - self.claimed_at, ended, self.progress))
