"""Workers at the level of statements: what a test does can come between two statements of a resolver."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from sqla_jobs import JobMixin
from sqla_jobs.queries import Claimed, Queries
from sqla_jobs.worker.resolver import JobResolver, _Look
from tests.helpers import wait_until, waiting_for_locks
from tests.limits.claims import Claims, as_worker
from tests.shop import jobs

Actions = Mapping[str, Callable[[], object]]
"""What to do before a statement, by its name; `settle 2` is the second one of that name."""


class Interrupted:
    """The statements of a resolver. Before some of them a test does something."""

    def __init__(self, queries: Queries) -> None:
        self._queries = queries
        self._before: dict[str, Callable[[], object]] = {}
        self._seen = Counter[str]()

    def expect(self, before: Actions) -> None:
        self._before, self._seen = dict(before), Counter()

    @property
    def left(self) -> list[str]:
        """The statements that have not come."""
        return [*self._before]

    def __getattr__(self, name: str) -> Any:
        self._seen[name] += 1
        key = name if self._seen[name] == 1 else f"{name} {self._seen[name]}"
        if (action := self._before.pop(key, None)) is not None:
            action()
        return getattr(self._queries, name)


def _hear(message: str) -> None:
    """Claim nothing: a test does that when it wants."""


class Process:
    """A worker process without threads: it claims and ends jobs, and resolves what it is told has ended."""

    def __init__(self, claims: Claims, patience: float) -> None:
        self.claims = claims
        self.statements = Interrupted(claims.queries)
        statements: Any = self.statements
        self.resolver = JobResolver(claims.engine, statements, patience=patience, poll=3600.0, claim=_hear)
        self.resolver._last = _Look(self.resolver._news, due_at=math.inf)
        self.running: dict[int, Claimed] = {}

    def claim(self, room: int = 100) -> list[int]:
        """Start what is queued, and return the ids."""
        claimed = self.claims.plain(room)
        self.running.update((one.job_id, one) for one in claimed)
        return [one.job_id for one in claimed]

    def end(self, *ended: JobMixin | int) -> None:
        """Store that these have succeeded, and resolve nothing yet."""
        self.claims.end(*(self.running.pop(_id(one)) for one in ended))

    def fail(self, *failed: JobMixin | int) -> None:
        """Store that these have failed for good, and resolve nothing yet."""
        for one in failed:
            self.claims.fail(self.running.pop(_id(one)))

    def resolve(self, *ended: JobMixin | int, before: Actions = MappingProxyType({})) -> None:
        """Resolve these ends. In between, do what `before` says."""
        self.statements.expect(before)
        self.resolver._resolve({_id(one) for one in ended})
        assert self.statements.left == [], "these did not come"

    def again(self) -> None:
        """Try again what somebody held locked, as the resolver does soon."""
        self.resolver._resolve(self.resolver._take())

    def look(self) -> None:
        """Look at all blocked jobs, as after a message."""
        self.resolver.resolve_all()

    def succeed_all(self) -> None:
        """Run all that is queued, and all that this queues, without a look at all blocked jobs."""
        while self.claim() or self.running:
            for job_id in [*self.running]:
                self.end(job_id)
                self.resolve(job_id)
            self.again()


def _id(job: JobMixin | int) -> int:
    return job if isinstance(job, int) else int(job.__dict__.get("id") or job.id)


@contextmanager
def process(engine: Engine, *, patience: float = 20.0) -> Generator[Process]:
    with as_worker(engine, jobs) as claims:
        yield Process(claims, patience)


class RowWaiters:
    """Threads that wait for a row which somebody holds locked."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._threads = ThreadPoolExecutor(2)

    def __enter__(self) -> RowWaiters:
        return self

    def __exit__(self, *raised: object) -> None:
        self._threads.shutdown()

    def for_row(self, work: Callable[[], Any]) -> Future[Any]:
        """Begin the work, and return once it waits."""
        future = self._threads.submit(work)
        wait_until(lambda: future.done() or waiting_for_locks(self._engine))
        assert not future.done(), future.result()
        return future


def state(engine: Engine, job: JobMixin | int) -> str:
    """The job's state as committed."""
    with Session(engine) as session:
        found = session.scalar(text("SELECT state FROM sqla_jobs WHERE id = :id"), {"id": _id(job)})
    return "gone" if found is None else str(found)
