"""The one way to wake a loop: `News`, which any thread tells, and `Loop`, which takes a step after each of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import sqlalchemy as sa

from sqla_jobs.database.shard_name import of_shard
from sqla_jobs.runtime.retrying import RetryLoop


class News:
    """News for one loop, of anything that may let its next step find more than the last step did.

    What was done or committed before `tell()` is seen by a step that begins after `tell()`. For this, the loop reads
    `token` before each step, and passes it to `wait` afterwards. Each `tell` then leads to a step that begins later:

    - If `tell` replaces the token before the loop reads it, the step that follows begins later.
    - If it does so afterwards, and before `wait` compares the tokens, these differ. So `wait` returns immediately.
    - If it does so after that comparison, it finds that the loop waits, and sets the event after `wait` has cleared it.
      Or another `tell` has found that, and is about to set it. So `wait` returns, too.
    """

    def __init__(self) -> None:
        self.token: object = object()
        self._waits = False
        """True while a `tell` has to set the event."""
        self._event = threading.Event()

    def tell(self) -> None:
        """Let the loop take a step that begins after this call."""
        self.token = object()
        if self._waits:
            self._waits = False
            self._event.set()

    def wait(self, *, unless_changed_since: object, until: float) -> None:
        """Wait for the next `tell`, at most until a time by `time.monotonic()`. Only one thread may wait."""
        self._event.clear()
        self._waits = True
        if self.token is unless_changed_since:
            self._event.wait(min(max(0.0, until - time.monotonic()), threading.TIMEOUT_MAX))
        self._waits = False


class Loop:
    """Takes steps in its own thread: at the start, after each `tell()`, and at the time that the last step returned.

    A step reads what there is to do, does it, and returns when to look again without news, by `time.monotonic()`. Any
    thread may call the same step. A step that raises is repeated until it succeeds. `what` names it in log lines.
    """

    def __init__(
        self,
        what: str,
        step: Callable[[], float],
        *,
        name: str,
        server: sa.Engine | None = None,
        longest: float = 5.0,
        apart: float = 0.0,
        finishes: bool = False,
    ) -> None:
        """Prepare the loop. `longest` is the longest pause after an error, and `apart` the pause after each step.

        After an error, the next step follows once the `server`, if there is one, accepts writes.

        If it `finishes`, it takes one more step when it is stopped.
        """
        self.news: News = News()
        self.stopping: threading.Event = threading.Event()
        self.retry: RetryLoop = RetryLoop(what, self.stopping, longest=longest, server=server)
        self._step = step
        self._apart = apart
        self._finishes = finishes
        self._thread = threading.Thread(target=of_shard(self._run), name=name, daemon=True)

    def tell(self) -> None:
        """Take a step soon that sees all that was done before this call. Any thread may call this."""
        self.news.tell()

    def start(self) -> None:
        """Start the thread, unless it was started before."""
        if not self.has_started:
            self._thread.start()

    @property
    def has_started(self) -> bool:
        """True from the call of `start` on."""
        return self._thread.ident is not None

    @property
    def has_ended(self) -> bool:
        """True once the loop was stopped and its last step is over."""
        return self.stopping.is_set() and not self._thread.is_alive()

    def stop(self, timeout: float) -> bool:
        """Stop after the step in progress. Wait up to `timeout` seconds for its end; return whether it has ended."""
        self.stopping.set()
        self.tell()
        if self.has_started:
            self._thread.join(timeout)
        return self.has_ended

    def _run(self) -> None:
        while not self.stopping.is_set():
            self.turn()
        if self._finishes:
            self.retry.run(self._step)

    def turn(self) -> None:
        """Take a step, and wait for news, or for the time that the step returned."""
        token = self.news.token
        next_at = self.retry.run(self._step)
        if self._apart:
            self.stopping.wait(self._apart)
        self.news.wait(unless_changed_since=token, until=next_at or 0.0)
