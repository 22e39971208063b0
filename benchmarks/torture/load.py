"""A steady load through its own engine, signals to its jobs, and a ledger of the answers to all commits."""

from __future__ import annotations

import heapq
import itertools
import random
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property, partial
from typing import Any, Literal

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from benchmarks.torture import app
from sqla_jobs import JobMixin
from sqla_jobs.errors import JobsError, UnknownJob
from sqla_jobs.models.workflow_columns import BatchMixin
from sqla_jobs.tasks.enqueue import EnqueueOptions
from sqla_jobs.tasks.task import Task

_BY_WEIGHT = {
    30: ["mark"],
    25: ["write", "write_awaited"],
    8: ["chain", "chain_awaited"],
    7: ["flaky"],
    6: ["snooze", "both", "once"],
    4: ["stepped", "stepped_awaited", "ask"],
    1: ["litter"],
    3: ["overrun", "overrun_awaited", "hopeless", "stepped_apart", "ask_awaited"],
}
_WEIGHTS = {task: weight for weight, tasks in _BY_WEIGHT.items() for task in tasks}
_GRAPHS = 0.5
"""Some transactions have several jobs. In this share of them, some jobs wait for others."""
_ROLLED_BACK = 0.02
_DELAYED = 0.15
_LONG = 0.05
"""The share of long jobs. Faults are likely to hit a long job. A lost run may then continue beside its successor."""
_CANCELS = 0.06
_MAY_BE_LONG = {"write", "write_awaited", "mark", "chain", "chain_awaited", "stepped", "stepped_awaited"}
_CATCH_UP = 0.5
"""After an outage, the load of this number of missed seconds is made up for."""
_AFTER_ERROR = 0.2
_CANCELLED_AMONG = 30
"""A cancel chooses among this number of the newest jobs, since most older jobs have ended."""
_SIGNALS = 2
"""The number of signals that each job waits for."""
_SENT_WITHIN = 2.0
"""A signal is first sent at most this number of seconds after the enqueue of its job."""
_AGAIN, _PAUSE = 0.3, 0.02
_TRIES = 100
"""The number of tries while the job does not exist. Its commit got no answer, and may still be under way."""


class Answer(StrEnum):
    """The server's answer to a transaction: a refused one was rolled back, or its connection broke before COMMIT."""

    acknowledged = "acknowledged"
    refused = "refused"
    unknown = "unknown"
    """The connection broke between COMMIT and its answer."""


@dataclass
class Ledger:
    """The requests to the library, and the server's answers. Cancels of and signals to ended jobs are left out."""

    enqueued: dict[int, tuple[str, Answer]] = field(default_factory=dict[int, tuple[str, Answer]])
    """The task and the answer for each job, by the job's own number."""
    cancels: dict[int, Answer] = field(default_factory=dict[int, Answer])
    """The answer to each cancel, by job id."""
    signals: dict[int, tuple[int, Answer]] = field(default_factory=dict[int, tuple[int, Answer]])
    """The job id and the answer for each signal, by payload."""
    asking: deque[int] = field(default_factory=deque[int])
    """Ids of jobs that wait for signals. A job whose commit got no answer may not exist."""
    recent: list[int] = field(default_factory=list[int])
    """Ids of jobs that may be cancelled."""
    surprises: list[str] = field(default_factory=list[str])
    """Errors that must not occur in any outage."""

    @cached_property
    def of_jobs(self) -> dict[int, dict[int, Answer]]:
        """The answers to all signals to each job, by payload. To be read when all are sent."""
        sent: dict[int, dict[int, Answer]] = defaultdict(dict)
        for payload, (job_id, answer) in self.signals.items():
            sent[job_id][payload] = answer
        return sent


@contextmanager
def _asking(engine: Engine, tell: Callable[[Answer], object]) -> Generator[Session]:
    """Yield a session, and commit it at the end unless it was rolled back. Tell the server's answer in any case."""
    answer = Answer.refused
    try:
        with Session(engine, expire_on_commit=False) as session:
            yield session
            if session.in_transaction():
                answer = Answer.unknown
                session.commit()
                answer = Answer.acknowledged
    finally:
        tell(answer)


class Background:
    """Loops that run in threads of their own until `stop()`."""

    def __init__(self, *loops: Callable[[], None]) -> None:
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=loop) for loop in loops]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ask the loops to end, and wait until they have."""
        self._stopping.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()


class Graph:
    """Jobs of one transaction. Some wait for others, and perhaps for a batch of the first jobs.

    No job waits for one with an oddity, which a trigger may hold up. Nor does a job with an ordered key wait, since the
    jobs of its key must run in the order of their enqueues.
    """

    def __init__(self, session: Session, rng: random.Random, number: int) -> None:
        self.jobs: list[JobMixin] = []
        self._rng = rng
        self._members = number // 2
        self._batch = app.jobs.batch(session, name="torture") if rng.random() < _GRAPHS else None

    def links(self, name: str, oddity: str | None) -> EnqueueOptions:
        """Return the options for the next job."""
        if name in app.ORDERED or oddity is not None or not self.jobs:
            return {}
        after: list[JobMixin | BatchMixin] = [*self._rng.sample(self.jobs, min(len(self.jobs), 2))]
        if_failed: Literal["cancel", "run"] = self._rng.choice(["cancel", "run"])
        if self._batch is None:
            return {"after": after, "if_failed": if_failed}
        if len(self.jobs) <= self._members:
            return {"after": after[:1], "if_failed": if_failed, "batch": self._batch}
        return {"after": [self._batch, *after[1:]], "if_failed": if_failed}


class Load(Background):
    """Threads that together enqueue `rate` jobs a second. They continue across outages, until `stop()`."""

    def __init__(self, engine: Engine, ledger: Ledger, *, seed: int, rate: float, threads: int = 3) -> None:
        super().__init__(*(partial(self._loop, random.Random(f"{seed}-{k}"), rate / threads) for k in range(threads)))
        self._engine = engine
        self._ledger = ledger
        self._numbers = itertools.count(1)
        self._extra: deque[tuple[str, str | None]] = deque()

    def add(self, task: str, oddity: str | None = None) -> None:
        """Enqueue one job of this task soon."""
        self._extra.append((task, oddity))

    def _loop(self, rng: random.Random, rate: float) -> None:
        due = time.monotonic()
        while not self._stopping.wait(max(0.0, due - time.monotonic())):
            tasks = self._choose(rng)
            due = max(due, time.monotonic() - _CATCH_UP) + len(tasks) * rng.uniform(0.5, 1.5) / rate
            try:
                self._enqueue(rng, tasks)
                if rng.random() < _CANCELS and self._ledger.recent:
                    self._cancel(rng.choice(list(self._ledger.recent)))  # a copy: other threads add to it
            except DBAPIError:
                self._stopping.wait(_AFTER_ERROR)

    def _choose(self, rng: random.Random) -> list[tuple[str, str | None]]:
        """Choose the tasks of a transaction. Return each with its oddity or None."""
        tasks = rng.choices([*_WEIGHTS], [*_WEIGHTS.values()], k=rng.choice([1, 1, 1, 2, 5]))
        chosen: list[tuple[str, str | None]] = [(task, None) for task in tasks]
        with suppress(IndexError):
            chosen.append(self._extra.popleft())
        return chosen

    def _enqueue(self, rng: random.Random, tasks: list[tuple[str, str | None]]) -> None:
        """Enqueue these tasks in one transaction."""
        numbered, made = {next(self._numbers): chosen for chosen in tasks}, list[tuple[int, str]]()

        def tell(answer: Answer) -> None:
            self._ledger.enqueued.update((n, (task, answer)) for n, (task, _) in numbered.items())
            if answer is not Answer.refused:
                self._ledger.asking += [job_id for job_id, task in made if task in app.ASKING]
            if answer is Answer.acknowledged:
                self._ledger.recent += [job_id for job_id, task in made if task not in app.STOPPING]
                del self._ledger.recent[:-_CANCELLED_AMONG]

        with _asking(self._engine, tell) as session:
            graph = Graph(session, rng, len(tasks)) if len(tasks) > 1 and rng.random() < _GRAPHS else None
            for n, (name, oddity) in numbered.items():
                links: EnqueueOptions = {} if graph is None else graph.links(name, oddity)
                job = self._add(session, rng, n, name, oddity, links)
                if graph is not None and oddity is None:
                    graph.jobs.append(job)
                session.flush()
                made.append((job.id, job.task))
            if rng.random() < _ROLLED_BACK:
                session.rollback()

    def _cancel(self, job_id: int) -> None:
        def tell(answer: Answer) -> None:
            if answer is not Answer.refused and self._ledger.cancels.get(job_id) is not Answer.acknowledged:
                self._ledger.cancels[job_id] = answer

        try:
            with _asking(self._engine, tell) as session:
                if not app.jobs.cancel(session, job_id):
                    session.rollback()
        except JobsError as error:
            self._ledger.surprises.append(f"cancel of job {job_id}: {error}")

    def _add(
        self, session: Session, rng: random.Random, n: int, name: str, oddity: str | None, links: EnqueueOptions
    ) -> JobMixin:
        task: Task[Any, Any, app.TortureJob] = app.jobs.tasks[name]
        delay = rng.uniform(0.2, 5.0) if rng.random() < _DELAYED else None
        is_long = name in _MAY_BE_LONG and rng.random() < _LONG
        seconds = rng.uniform(1.0, 6.0) if is_long else rng.choice([0.0, 0.02, 0.1, 0.3, 0.3])
        priority = rng.choice([0, 0, 0, 0, -5, 5])
        options: EnqueueOptions = {**links, "delay": delay, "priority": priority, "columns": {"oddity": oddity}}
        return task.options(**options).enqueue(session, n=n, seconds=3600.0 if name == "hang" else seconds)


class Signals(Background):
    """A thread that sends each signal until its commit is acknowledged or the job has ended, even across outages."""

    def __init__(self, engine: Engine, ledger: Ledger, seed: int) -> None:
        super().__init__(self._loop)
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
        while not self._stopping.wait(_PAUSE):
            while self._ledger.asking:
                for _ in range(_SIGNALS):
                    self._push(self._ledger.asking[0], self._rng.uniform(0.0, _SENT_WITHIN))
                self._ledger.asking.popleft()
            while self._due and self._due[0][0] <= time.monotonic() and not self._stopping.is_set():
                _, job_id, tries = self._due[0]
                again = self._send(job_id, tries)
                heapq.heappop(self._due)
                if again:
                    self._push(job_id, _AGAIN, tries + 1)

    def _push(self, job_id: int, seconds: float, tries: int = 0) -> None:
        heapq.heappush(self._due, (time.monotonic() + seconds, job_id, tries))

    def _send(self, job_id: int, tries: int) -> bool:
        """Send one signal. Return True if this one may be lost, so that another signal must be sent."""
        payload = next(self._payloads)

        def tell(answer: Answer) -> None:
            self._ledger.signals[payload] = (job_id, answer)

        try:
            with _asking(self._engine, tell) as session:
                if not app.jobs.signal(session, job_id, "told", payload):
                    session.rollback()
        except DBAPIError:
            return True
        except UnknownJob:
            return tries < _TRIES
        except JobsError as error:
            self._ledger.surprises.append(f"signal to job {job_id}: {error}")
        return False
