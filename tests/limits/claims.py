"""Claims behind limits at the level of statements, each on a connection of its own."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from sqla_jobs import Jobs
from sqla_jobs.database.engines import close_engine, own_engine
from sqla_jobs.queries import Claimed, Queries, RunEnd, processes
from sqla_jobs.queries.claim_limited import NOTHING_ENDED, Gates
from sqla_jobs.rules.outcomes import Failure, Outcome
from sqla_jobs.worker.backfill import Backfill, store_limits
from tests.helpers import WAITING_HERE


class Claims:
    """What a worker process sends, under a process of its own."""

    def __init__(self, engine: Engine, jobs: Jobs[Any], queues: Sequence[str] = ("default",)) -> None:
        self.engine = engine
        self.jobs = jobs
        self.queries = Queries(jobs._models, "public")  # as a worker names the tables
        self.tasks = list(jobs.tasks)
        declarations = {name: jobs.tasks[name]._declaration for name in self.tasks}
        store = partial(store_limits, engine, jobs._models, declarations)
        self.backfill = Backfill(self.queries, engine.begin, declarations, queues, store=store)
        self.backfill.declare()
        with engine.begin() as connection:
            self.process_id = processes.register(connection, jobs._models, kind="worker", queues={}, lease=60)

    def limited(
        self,
        room: int = 10,
        *,
        queue: str = "default",
        hints: Mapping[Gates, int] = NOTHING_ENDED,
    ) -> list[Claimed]:
        """Once through all groups of a queue, or as far as there is room."""
        with self.engine.connect() as connection:
            tasks = [task for task in self.tasks if task not in self.backfill.limits.stored.held_up]
            claim = self.queries.claim_limited
            return claim(connection, self.process_id, queue, room, tasks, hints=hints).claimed

    def plain(self, room: int = 10, *, queue: str = "default") -> list[Claimed]:
        with self.engine.begin() as connection:
            return self.queries.claim(connection, self.process_id, {queue: room}, self.tasks)

    def repair(self) -> None:
        """What a worker does before it claims, whenever it did it last."""
        self.backfill.look()

    def end(self, *claimed: Claimed, outcome: Outcome | None = None) -> None:
        with self.engine.begin() as connection:
            self.queries.finish(connection, [RunEnd(job, outcome or Outcome.succeeded()) for job in claimed])

    def fail(self, job: Claimed, *, again_in: float | None = None) -> None:
        """For good, or to be tried again."""
        why = Failure("Error", "as asked")
        self.end(job, outcome=Outcome.failed(why) if again_in is None else Outcome.retried(again_in, why))

    def promote(self) -> None:
        """Queue what is scheduled and due."""
        with self.engine.begin() as connection:
            self.queries.promote(connection, queues=["default"])


@contextmanager
def as_worker(engine: Engine, jobs: Jobs[Any], queues: Sequence[str] = ("default",)) -> Generator[Claims]:
    own = own_engine(engine, patience=20, most=20)
    try:
        yield Claims(own, jobs, queues)
    finally:
        close_engine(own)


@contextmanager
def lock_held(engine: Engine, jobs: Jobs[Any]) -> Generator[Session]:
    """The lock of limits is held by this session, until it ends its transaction."""
    with Session(engine) as session:
        session.connection(execution_options={"isolation_level": "READ COMMITTED"})
        Queries(jobs._models, "public").lock_limits.run(session)
        yield session


def waiting_for_locks(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.scalar(text(f"SELECT count(*) FROM {WAITING_HERE}")) or 0


@contextmanager
def beside(work: Callable[[], Any]) -> Generator[Future[Any]]:
    """Something that waits for a lock, in a thread of its own."""
    with ThreadPoolExecutor(1) as thread:
        yield thread.submit(work)


def claim_in(session: Session, claims: Claims, number: int) -> list[Claimed]:
    """Claims in a transaction that the caller ends."""
    claimed: list[Claimed] = []
    for _ in range(number):
        one = claims.queries.claim_limited.inside(session, claims.process_id, "default", claims.tasks, cursor="{}")
        claimed += one[0]
    return claimed
