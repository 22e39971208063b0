"""The same work by hand, without a library for jobs: what PostgreSQL achieves through psycopg or SQLAlchemy."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import LiteralString

import psycopg
from sqlalchemy import Engine, insert, text
from sqlalchemy.orm import Session

from benchmarks.portable import CONCURRENCY, Effect, jobs

_TABLES = (
    """CREATE TABLE plain_jobs (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        queue text NOT NULL, task text NOT NULL, args jsonb NOT NULL, state text NOT NULL DEFAULT 'queued',
        priority smallint NOT NULL DEFAULT 0, attempt int NOT NULL DEFAULT 0,
        run_at timestamptz NOT NULL DEFAULT now(), created_at timestamptz NOT NULL DEFAULT now(),
        started_at timestamptz, worker_id int, finished_at timestamptz)""",
    "CREATE INDEX plain_queued ON plain_jobs (queue, priority, id) WHERE state = 'queued'",
    """CREATE TABLE plain_runs (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        job_id bigint NOT NULL, attempt int NOT NULL, outcome text NOT NULL,
        started_at timestamptz NOT NULL, finished_at timestamptz NOT NULL)""",
    "CREATE INDEX plain_runs_job ON plain_runs (job_id)",
)


class Plain:
    """A table of jobs and one of runs. One connection enqueues, claims and finishes the jobs, in batches."""

    def __init__(self, engine: Engine) -> None:
        self._dsn = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
        with engine.begin() as connection:
            for statement in _TABLES:
                connection.execute(text(statement))

    def enqueue_many(self, count: int) -> float:
        """Insert jobs in one transaction, 1,000 in each statement. Return the jobs per second."""
        with psycopg.connect(self._dsn) as connection:
            connection.execute("TRUNCATE plain_jobs, plain_runs")
            connection.commit()
            began = time.perf_counter()
            for start in range(0, count, 1000):
                args = [f'{{"i": {i}}}' for i in range(start, min(start + 1000, count))]
                connection.execute(_FILL, [args])
            connection.commit()
            return count / (time.perf_counter() - began)

    def drain(self, count: int) -> float:
        """Claim and finish this number of jobs, 1,000 at a time. Return the jobs per second."""
        self.enqueue_many(count)
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE plain_jobs")
            began = time.perf_counter()
            while claimed := _claim(connection, 1000):
                connection.execute(_FINISH, [claimed])
            return count / (time.perf_counter() - began)

    def pick_up(self, count: int) -> tuple[list[float], list[float]]:
        """Return the milliseconds until a listener has claimed a row, from the row's INSERT and from its COMMIT."""
        claimed_at = dict[object, float]()
        ready, stop = threading.Event(), threading.Event()

        def listen() -> None:
            with psycopg.connect(self._dsn, autocommit=True) as listener:
                listener.execute("LISTEN plain_jobs")
                ready.set()
                while not stop.is_set():
                    list(listener.notifies(timeout=0.2, stop_after=1))
                    for job_id in _claim(listener, 10):
                        claimed_at[job_id] = time.monotonic()

        thread = threading.Thread(target=listen)
        thread.start()
        ready.wait(10)
        waits, after = list[float](), list[float]()
        adding = "INSERT INTO plain_jobs (queue, task, args) VALUES ('default', 'nothing', '{}') RETURNING id"
        with psycopg.connect(self._dsn) as connection:
            for i in range(count):
                time.sleep(0.02 + (i % 7) * 0.005)
                began = time.monotonic()
                (job_id,) = connection.execute(adding).fetchone() or (None,)
                connection.execute("NOTIFY plain_jobs")
                connection.commit()
                committed = time.monotonic()
                while job_id not in claimed_at and time.monotonic() < began + 10:
                    time.sleep(0.0002)
                waits.append(1000 * (claimed_at[job_id] - began))
                after.append(1000 * (claimed_at[job_id] - committed))
        stop.set()
        thread.join()
        return sorted(waits), sorted(after)


_FILL: LiteralString = """INSERT INTO plain_jobs (queue, task, args)
    SELECT 'default', 'nothing', x::jsonb FROM unnest(%s::text[]) x"""
_CLAIM: LiteralString = """UPDATE plain_jobs SET state = 'running', started_at = now(), worker_id = 1,
    attempt = attempt + 1 WHERE id = ANY (ARRAY(SELECT id FROM plain_jobs
        WHERE queue = 'default' AND state = 'queued' AND run_at <= now() ORDER BY priority, id LIMIT %s
        FOR UPDATE SKIP LOCKED))
    RETURNING id, task, args, attempt, started_at"""
_FINISH: LiteralString = """WITH done AS (UPDATE plain_jobs SET state = 'succeeded', finished_at = now()
    WHERE id = ANY(%s) AND state = 'running' RETURNING id, attempt, started_at)
    INSERT INTO plain_runs (job_id, attempt, outcome, started_at, finished_at)
        SELECT id, attempt, 'succeeded', started_at, now() FROM done"""


def _claim(connection: psycopg.Connection[tuple[object, ...]], batch: int) -> list[object]:
    return [row[0] for row in connection.execute(_CLAIM, [batch]).fetchall()]


def _rate(count: int, step: Callable[[int], object]) -> float:
    began = time.perf_counter()
    for i in range(count):
        step(i)
    return count / (time.perf_counter() - began)


def at_once(engine: Engine, count: int, loop: Callable[[Engine, int], float]) -> float:
    """Execute the loop in as many threads as a worker has. Return the steps per second of all threads together."""
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        return count * _rate(
            1, lambda _: [*pool.map(loop, [engine] * CONCURRENCY, [count // CONCURRENCY] * CONCURRENCY)]
        )


def one_by_one(engine: Engine, count: int) -> float:
    """Enqueue and commit jobs one by one. Return the jobs per second, as the following functions do for rows."""
    return _committed(engine, count, lambda session, i: jobs.tasks["nothing"].enqueue(session, i=i))


def _committed(engine: Engine, count: int, step: Callable[[Session, int], object]) -> float:
    with Session(engine) as session:

        def commit(i: int) -> None:
            step(session, i)
            session.commit()

        return _rate(count, commit)


def insert_rows(engine: Engine, count: int) -> float:
    """INSERT and COMMIT rows of the library's own table one by one, in one session."""
    row, statement = {"task": "nothing", "args": {"i": 1}, "queue": "default", "state": "queued"}, insert(jobs.Job)
    return _committed(engine, count, lambda session, _: session.execute(statement, row))


def add_objects(engine: Engine, count: int) -> float:
    """Insert the same rows as objects that are added to the session."""
    row = {"task": "nothing", "queue": "default", "state": "queued"}
    return _committed(engine, count, lambda session, i: session.add(jobs.Job(args={"i": i}, **row)))


def add_effects(engine: Engine, count: int) -> float:
    """Insert one row in each of many transactions, each with a new session."""

    def step(i: int) -> None:
        with Session(engine) as session:
            session.add(Effect(n=i))
            session.commit()

    return _rate(count, step)
