"""Steps in tests: stored as rows in the test's own transaction, or kept in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session
from sqlalchemy.util import greenlet_spawn

from sqla_jobs.errors import ArgumentsError
from sqla_jobs.execution.step_store import Read, Received
from sqla_jobs.models.types import StepKind
from sqla_jobs.queries import Lease
from sqla_jobs.queries.steps import NewStep, StoredStep
from sqla_jobs.rules.wording import did_you_mean
from sqla_jobs.tasks.values import encode_payload
from sqla_jobs.testing.claims import Savepoints


class MemoryStore:
    """Calls each step, and ends each sleep at once. The test gives the signals."""

    def __init__(
        self, session: Session, savepoints: Savepoints | None, signals: Mapping[str, Sequence[object]]
    ) -> None:
        """Prepare for a run. `savepoints` are those of a task with a session. Raises `ArgumentsError`."""
        self._session = session
        self._lease = Lease(0, 0, UUID(int=0))
        self._savepoints = savepoints
        self._signals = {
            name: deque(encode_payload(f"signals[{name!r}]", payload) for payload in payloads)
            for name, payloads in signals.items()
        }

    def spawn(self, function: Callable[[], Any], /) -> Coroutine[Any, Any, Any]:
        return greenlet_spawn(function)

    def spawn_in_session(self, function: Callable[[], Any], /) -> Coroutine[Any, Any, Any]:
        return greenlet_spawn(function)

    def load(self) -> list[StoredStep]:
        return []

    def has_written(self) -> bool:
        return self._savepoints is not None and self._savepoints.has_written(self._session)

    def undo(self) -> None:
        if self._savepoints is not None:
            self._savepoints.undo_part(self._session)

    def keep(self, name: str, number: int, result: str | None, *, took: float) -> str | None:
        if self._savepoints is not None:
            self._savepoints.commit_part(self._session, NewStep(self._lease, name, number, result, took))
        return result

    def recall(self, name: str, error: Exception) -> str | None:
        raise error

    def sleep(self, name: str, number: int, length: float) -> None: ...

    def receive(self, name: str, number: int, signal: str, timeout: float | None, read: Read) -> Received:
        if left := self._signals.get(signal):
            return Received(StepKind.signal, read(left.popleft()))
        if timeout is None:
            raise ArgumentsError(
                f"the task waits for the signal {signal!r} for ever, and the test gives none"
                f"{did_you_mean(signal, self._signals)}: write run_job(session, task, "
                f"signals={{{signal!r}: [its payload]}})"
            )
        return Received(StepKind.timeout, None)
