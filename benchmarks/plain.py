"""The same work by hand, without a library for jobs: what PostgreSQL achieves through psycopg or SQLAlchemy."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import LiteralString

import psycopg
from psycopg import sql
from sqlalchemy import Engine, insert
from sqlalchemy.orm import Session

from benchmarks.work import SCHEMA, Effect, jobs

Connection = psycopg.Connection[tuple[object, ...]]
THREADS = 8


class Plain:
    """A table of jobs and a table of runs. One connection enqueues, claims and finishes the jobs, in batches."""

    def __init__(self, engine: Engine) -> None:
        self._dsn = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
        self._connection = psycopg.connect(self._dsn, autocommit=True)
        self._run(
            """CREATE TABLE IF NOT EXISTS {schema}.plain_jobs (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
                queue text NOT NULL, task text NOT NULL, args jsonb NOT NULL, state text NOT NULL DEFAULT 'queued',
                priority smallint NOT NULL DEFAULT 0, attempt int NOT NULL DEFAULT 0,
                run_at timestamptz NOT NULL DEFAULT now(), created_at timestamptz NOT NULL DEFAULT now(),
                started_at timestamptz, worker_id int, finished_at timestamptz)"""
        )
        self._run(
            "CREATE INDEX IF NOT EXISTS plain_queued ON {schema}.plain_jobs (queue, priority, id) "
            "WHERE state = 'queued'"
        )
        self._run(
            """CREATE TABLE IF NOT EXISTS {schema}.plain_runs (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
                job_id bigint NOT NULL, attempt int NOT NULL, outcome text NOT NULL,
                started_at timestamptz NOT NULL, finished_at timestamptz NOT NULL)"""
        )
        self._run("CREATE INDEX IF NOT EXISTS plain_runs_job ON {schema}.plain_runs (job_id)")

    def _run(self, statement: LiteralString, *values: object) -> psycopg.Cursor[tuple[object, ...]]:
        return self._connection.execute(sql.SQL(statement).format(schema=sql.Identifier(SCHEMA)), values or None)

    def close(self) -> None:
        self._connection.close()

    def empty(self) -> None:
        self._run("TRUNCATE {schema}.plain_jobs, {schema}.plain_runs")

    def enqueue_many(self, count: int) -> float:
        """Insert jobs in one transaction, 1,000 in each statement. Return the jobs per second."""
        began = time.perf_counter()
        with self._connection.transaction():
            for start in range(0, count, 1000):
                args = [f'{{"i": {i}}}' for i in range(start, min(start + 1000, count))]
                self._run(
                    "INSERT INTO {schema}.plain_jobs (queue, task, args) "
                    "SELECT 'default', 'nothing', x::jsonb FROM unnest(%s::text[]) x",
                    args,
                )
        return count / (time.perf_counter() - began)

    def drain(self) -> float:
        """Claim and finish all jobs, 1,000 at a time. Return the jobs per second."""
        began, done = time.perf_counter(), 0
        while claimed := self._claim(1000):
            self._finish(claimed)
            done += len(claimed)
        return done / (time.perf_counter() - began)

    def _claim(self, batch: int) -> list[object]:
        rows = self._run(
            """UPDATE {schema}.plain_jobs SET state = 'running', started_at = now(), worker_id = 1,
                attempt = attempt + 1 WHERE id = ANY (ARRAY(SELECT id FROM {schema}.plain_jobs
                    WHERE queue = 'default' AND state = 'queued' AND run_at <= now() ORDER BY priority, id LIMIT %s
                    FOR UPDATE SKIP LOCKED))
                RETURNING id, task, args, attempt, started_at""",
            batch,
        )
        return [row[0] for row in rows.fetchall()]

    def _finish(self, ids: list[object]) -> None:
        self._run(
            """WITH done AS (UPDATE {schema}.plain_jobs SET state = 'succeeded', finished_at = now()
                WHERE id = ANY(%s) AND state = 'running' RETURNING id, attempt, started_at)
            INSERT INTO {schema}.plain_runs (job_id, attempt, outcome, started_at, finished_at)
                SELECT id, attempt, 'succeeded', started_at, now() FROM done""",
            ids,
        )

    def pick_up(self, count: int) -> tuple[list[float], list[float]]:
        """Return the milliseconds until a listener has claimed a row, from the row's INSERT and from its COMMIT."""
        claimed_at: dict[object, float] = {}
        ready, stop = threading.Event(), threading.Event()

        def listen() -> None:
            with psycopg.connect(self._dsn, autocommit=True) as listener:
                other = Plain.__new__(Plain)
                other._connection = listener
                listener.execute("LISTEN plain_jobs")
                ready.set()
                while not stop.is_set():
                    list(listener.notifies(timeout=0.2, stop_after=1))
                    for job_id in other._claim(10):
                        claimed_at[job_id] = time.monotonic()

        thread = threading.Thread(target=listen)
        thread.start()
        ready.wait(10)
        waits, after = list[float](), list[float]()
        for i in range(count):
            time.sleep(0.02 + (i % 7) * 0.005)
            began = time.monotonic()
            with self._connection.transaction():
                rows = self._run(
                    "INSERT INTO {schema}.plain_jobs (queue, task, args) VALUES ('default', 'nothing', '{{}}') "
                    "RETURNING id"
                )
                (job_id,) = rows.fetchone() or (None,)
                self._connection.execute("NOTIFY plain_jobs")
            committed = time.monotonic()
            while job_id not in claimed_at and time.monotonic() < began + 10:
                time.sleep(0.0002)
            waits.append(1000 * (claimed_at[job_id] - began))
            after.append(1000 * (claimed_at[job_id] - committed))
        stop.set()
        thread.join()
        return sorted(waits), sorted(after)


def rate(count: int, step: Callable[[int], None]) -> float:
    """Execute the step `count` times. Return the steps per second."""
    began = time.perf_counter()
    for i in range(count):
        step(i)
    return count / (time.perf_counter() - began)


def at_once(engine: Engine, count: int, loop: Callable[[Engine, int], float]) -> float:
    """Execute the loop in as many threads as a worker has. Return the steps per second of all threads together."""
    threads = [threading.Thread(target=loop, args=(engine, count // THREADS)) for _ in range(THREADS)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return count / (time.perf_counter() - began)


def insert_rows(engine: Engine, count: int) -> float:
    """INSERT and COMMIT rows of the library's own table one by one, in one session. Return the rows per second."""
    row = {"task": "nothing", "args": {"i": 1}, "queue": "default", "state": "queued"}
    statement = insert(jobs.Job)
    with Session(engine) as session:

        def step(_: int) -> None:
            session.execute(statement, row)
            session.commit()

        return rate(count, step)


def add_objects(engine: Engine, count: int) -> float:
    """Insert the same rows as objects that are added to the session. Return the rows per second."""
    with Session(engine) as session:

        def step(i: int) -> None:
            session.add(jobs.Job(task="nothing", args={"i": i}, queue="default", state="queued"))
            session.commit()

        return rate(count, step)


def add_effects(engine: Engine, count: int) -> float:
    """Insert one row in each of many transactions, each with a new session. Return the transactions per second."""

    def step(i: int) -> None:
        with Session(engine) as session:
            session.add(Effect(n=i))
            session.commit()

    return rate(count, step)
