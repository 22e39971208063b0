"""Sends signals to the jobs that wait for them, even across outages, and records the answers to all commits."""

from __future__ import annotations

import heapq
import itertools
import random
import time

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from benchmarks.torture import app
from benchmarks.torture.background import Background
from benchmarks.torture.load import Answer, Ledger
from sqla_jobs.errors import JobsError, UnknownJob

_EACH = 2
"""The number of signals that each job waits for."""
_WITHIN = 2.0
"""A signal is first sent at most this number of seconds after the enqueue of its job."""
_AGAIN = 0.3
_TRIES = 100
"""The number of tries while the job does not exist. Its commit got no answer, and may still be under way."""
_PAUSE = 0.02


class Signals(Background):
    """A thread that sends each signal until its commit is acknowledged or the job has ended."""

    def __init__(self, engine: Engine, ledger: Ledger, seed: int) -> None:
        super().__init__("signals")
        self._engine = engine
        self._ledger = ledger
        self._rng = random.Random(f"signals-{seed}")
        self._payloads = itertools.count(1)
        self._due: list[tuple[float, int, int]] = []
        """The time, the job id, and the number of earlier tries, for each signal to send."""

    @property
    def are_sent(self) -> bool:
        """Whether no signal is left to send. This is final once the load has ended."""
        return not self._ledger.asking and not self._due

    def _loop(self) -> None:
        while not self._stop.wait(_PAUSE):
            while self._ledger.asking:
                for _ in range(_EACH):
                    self._push(self._ledger.asking[0], self._rng.uniform(0.0, _WITHIN))
                self._ledger.asking.popleft()
            while self._due and self._due[0][0] <= time.monotonic() and not self._stop.is_set():
                _, job_id, tries = self._due[0]
                again = self._send(job_id, tries)
                heapq.heappop(self._due)
                if again:
                    self._push(job_id, _AGAIN, tries + 1)

    def _push(self, job_id: int, seconds: float, tries: int = 0) -> None:
        heapq.heappush(self._due, (time.monotonic() + seconds, job_id, tries))

    def _send(self, job_id: int, tries: int) -> bool:
        """Send one signal. Return True if this one may be lost, so that another signal must be sent."""
        payload, answer = next(self._payloads), Answer.refused
        try:
            with Session(self._engine) as session:
                if not app.jobs.signal(session, job_id, "told", payload):
                    return False
                answer = Answer.unknown
                session.commit()
                answer = Answer.acknowledged
        except DBAPIError:
            return True
        except UnknownJob:
            return tries < _TRIES
        except JobsError as error:
            self._ledger.surprises.append(f"signal to job {job_id}: {error}")
        finally:
            self._ledger.signals[payload] = (job_id, answer)
        return False
