"""A claimed job, as handled in the process that claimed it."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cached_property, partial

from sqlalchemy.orm import Session

from sqla_jobs.errors import JobsError
from sqla_jobs.execution.interrupt import Cancelling, CancelRequested, Interrupt, Interruptible, LeaseGone
from sqla_jobs.execution.shared_memory import RunSlot
from sqla_jobs.queries import Claimed, RunEnd
from sqla_jobs.rules.outcomes import Outcome, storable
from sqla_jobs.rules.redaction import NOTHING, Secrets
from sqla_jobs.tasks.declaration import Declaration
from sqla_jobs.tasks.resources import NO_RESOURCES, Resources
from sqla_jobs.tasks.run_context import RunContext, Upstream
from sqla_jobs.tasks.steps import Steps, no_steps

_PROGRESS = 1000
"""The maximum length of a stored progress message, in characters."""


class Attempt:
    """An attempt, from the claim until its end is stored. All times are from `time.monotonic()`."""

    started_at: float | None = None
    has_begun = False
    """True once the executor's `started` callback has been called."""
    is_committed = False
    """True if the attempt's end is already stored: by the task's own transaction, or together with a sleep or wait."""
    context: RunContext | None = None
    progress: tuple[float, str | None] | None = None
    """The progress last reported. It is stored with the attempt's end, even if an update during the run was skipped."""
    sent_progress: tuple[float, str | None] | None = None
    """The progress last sent to the database during the run. If the job's row is locked, the update is skipped."""
    is_silent = False
    """True if progress is stored only with the attempt's end.

    This applies at isolation levels stricter than READ COMMITTED. There, the run's transaction fails at its end if
    another transaction has updated the job's row.
    """
    reported_after: float = 0.0
    """The seconds after which the stack of the slow run was last logged."""
    is_withdrawn: bool = False
    """True if the attempt may no longer begin and its job is being released."""
    is_lost: bool = False
    """True if the task's code may not run, because another process may run the job."""
    deadline: float | None = None
    """When the task's code is interrupted. `None` without a `timeout=`, in `undisturbed` blocks and after the end."""
    cancel_requested: bool = False
    slot: RunSlot | None = None
    """The shared memory in which the parent process sees that the attempt has begun."""
    declaration: Declaration | None = None
    """The task's declaration, once it is known."""
    progressed: Callable[[], None] | None = None
    """Called after the task has reported progress."""
    resources: Resources = NO_RESOURCES
    """The objects that this process's worker contexts have yielded."""
    upstream: Upstream | None = None
    """Reads the results of the jobs that this job was enqueued after."""
    body: Interruptible | None = None
    """The object that calls the task's code and can interrupt it, from the attempt's beginning to its end."""
    cancels: Cancelling | None = None
    """The innermost block of `run.cancelling` that the code is in."""
    session: Session | None = None
    """The task's session, if it takes one."""
    make_steps: Callable[[Attempt], Steps] | None = None
    """Creates the run's steps. `None` until the task's code is called."""
    suspended: RunEnd | None = None
    """The end of a run that sleeps or waits for a signal. It was stored together with the sleep or wait."""
    _undisturbed: int = 0
    """The number of `undisturbed` blocks that the run is in, since a coroutine may run several steps at once.

    The end of the task's code counts as one more, which lasts.
    """
    _left: float | None = None
    """The seconds that were left until the deadline when the first of these blocks began."""

    def __init__(self, job: Claimed, claimed_at: float, *, asked_at: float = 0.0) -> None:
        self.job = job
        self.claimed_at = claimed_at
        """When the claim's result arrived. The server committed the claim between `asked_at` and this time."""
        self.asked_at = asked_at

    @cached_property
    def secrets(self) -> Secrets:
        """The argument values that the attempt's log lines, errors and progress messages must not show."""
        return NOTHING if self.declaration is None else self.declaration.secrets(self.job.args)

    @property
    def waited(self) -> float:
        """Seconds between the job's due time and the start of the attempt."""
        return self.job.waited + (self.started_at or self.claimed_at) - self.claimed_at

    @property
    def is_running(self) -> bool:
        """True if the attempt has begun and is not over."""
        return self.started_at is not None and self.body is not None

    def __str__(self) -> str:
        return f"job {self.job.job_id} {self.job.task} attempt {self.job.attempt}"

    def begin(self, body: Interruptible, slot: RunSlot | None) -> bool:
        """Start the attempt. From now on the attempt counts toward `max_attempts`, even if this process dies.

        Return False if the attempt may not start: the parent process has released the jobs that this process claimed
        earlier.
        """
        started_at = time.monotonic()
        if slot is not None:
            slot.begin(self.job.job_id, self.job.run_id, self.claimed_at, started_at)
            if self.asked_at <= slot.revoked_at:
                slot.clear()
                return False
        self.body, self.slot, self.started_at = body, slot, started_at
        return True

    def code_ended(self) -> None:
        """End the deadline: what follows may wait for the database, and must not cost other jobs their process."""
        self._undisturbed += 1
        self._suspend()

    @contextmanager
    def undisturbed(self) -> Generator[None]:
        """Hold interrupts back until the end of the block, in which the task's code waits for the library.

        This time does not count towards the task's timeout, and nothing kills the process for this run meanwhile.
        """
        assert self.body is not None, "the task's code is running"
        with self.body.shielded():
            if not self._undisturbed:
                self._left = None if self.deadline is None else self.deadline - time.monotonic()
                self._suspend()
            self._undisturbed += 1
            try:
                yield
            finally:
                self._undisturbed -= 1
                if not self._undisturbed:
                    self._resume()

    def _suspend(self) -> None:
        self.deadline = None
        if self.slot is not None:
            self.slot.suspend()

    def _resume(self) -> None:
        if self._left is not None:
            self.deadline = time.monotonic() + self._left
            if self.context is not None:
                self.context.deadline = self.deadline
        if self.slot is not None:
            self.slot.resume(self.deadline)

    def conclude(self) -> None:
        """Record that the attempt is over and its end is about to be stored."""
        self.body = None
        if self.slot is not None:
            self.slot.suspend()

    def cancel(self) -> None:
        """Cancel the attempt: prevent its start, or interrupt it."""
        self.cancel_requested = True
        if self.context is not None:
            self.context.cancel_requested = True
        self.interrupt(CancelRequested)

    def lose(self) -> None:
        """Interrupt the attempt because its process was considered dead. The attempt can no longer store anything.

        If the task's code has not begun, it does not begin.
        """
        self.is_lost = True
        if self.context is not None:
            self.context.cancel_requested = True
        self.interrupt(LeaseGone)

    def interrupt(self, kind: type[Interrupt]) -> None:
        """Raise `kind` in the task's code, if that code is currently running."""
        body, cancels = self.body, self.cancels  # read only once: another thread clears them
        if body is not None and cancels is not None:
            cancels.interrupt(partial(body.interrupt, self, kind))
        elif body is not None:
            body.interrupt(self, kind)

    @contextmanager
    def cancelling(self, cancel: Callable[[], object]) -> Generator[None]:
        """Let an interrupt call `cancel` first, until the end of the block. Raises `JobsError` in a coroutine task."""
        if self.declaration is not None and self.declaration.signature.is_coroutine:
            raise JobsError(
                f"{self.job.task}: run.cancelling() is for functions: a coroutine is cancelled where it awaits, so "
                "write try: await … except asyncio.CancelledError: cancel the call on its server, and raise again"
            )
        block = Cancelling(self, cancel, self.cancels)
        try:
            self.cancels = block
            yield
        finally:
            block.close()
            self.cancels = block.outer

    def publish(self, fraction: float, message: str | None) -> None:
        said = None if message is None else storable(self.secrets.text(str(message)), _PROGRESS)
        self.progress = (fraction, said)
        if self.progressed is not None:
            self.progressed()

    @cached_property
    def steps(self) -> Steps:
        """The run's steps. Raises `JobsError` outside the task's own code."""
        return no_steps() if self.make_steps is None else self.make_steps(self)

    def ended(self, outcome: Outcome) -> RunEnd:
        """Return the `RunEnd` of this attempt, which ends now with this outcome."""
        started = self.started_at or self.claimed_at
        ended = time.monotonic() - self.claimed_at
        # the same as RunEnd(…), but faster: it calls no Python function
        return tuple.__new__(RunEnd, (self.job, outcome, started - self.claimed_at, ended, self.progress))
