"""The same work by hand: what PostgreSQL gives through psycopg, without a library."""

from __future__ import annotations

import threading
import time
from typing import LiteralString

import psycopg
from psycopg import sql

Connection = psycopg.Connection[tuple[object, ...]]


class Plain:
    """One table of jobs and one of runs; enqueue, claim and finish in batches on one connection."""

    def __init__(self, connection: Connection, schema: str) -> None:
        self._connection = connection
        self._schema = schema
        self._run(
            """CREATE TABLE {schema}.plain_jobs (id bigserial PRIMARY KEY, task text, args jsonb,
                state text DEFAULT 'queued', created_at timestamptz DEFAULT now(), started_at timestamptz,
                finished_at timestamptz)"""
        )
        self._run("CREATE INDEX ON {schema}.plain_jobs (id) WHERE state = 'queued'")
        self._run(
            """CREATE TABLE {schema}.plain_runs (job_id bigint, started_at timestamptz, finished_at timestamptz,
                outcome text)"""
        )

    def _run(self, statement: LiteralString, *values: object) -> psycopg.Cursor[tuple[object, ...]]:
        return self._connection.execute(sql.SQL(statement).format(schema=sql.Identifier(self._schema)), values or None)

    def clean(self) -> None:
        self._run("TRUNCATE {schema}.plain_jobs, {schema}.plain_runs")

    def enqueue(self, count: int) -> float:
        began = time.perf_counter()
        for i in range(count):
            with self._connection.transaction():
                self._run("INSERT INTO {schema}.plain_jobs (task, args) VALUES ('nothing', %s)", f'{{"i": {i}}}')
        return count / (time.perf_counter() - began)

    def enqueue_many(self, count: int) -> float:
        began = time.perf_counter()
        args = [f'{{"i": {i}}}' for i in range(count)]
        self._run(
            "INSERT INTO {schema}.plain_jobs (task, args) SELECT 'nothing', x::jsonb FROM unnest(%s::text[]) x", args
        )
        return count / (time.perf_counter() - began)

    def drain(self, batch: int) -> float:
        began, done = time.perf_counter(), 0
        while claimed := self._claim(batch):
            self._finish(claimed)
            done += len(claimed)
        return done / (time.perf_counter() - began)

    def _claim(self, batch: int) -> list[object]:
        rows = self._run(
            """WITH due AS MATERIALIZED (SELECT id FROM {schema}.plain_jobs WHERE state = 'queued'
                ORDER BY id LIMIT %s FOR NO KEY UPDATE SKIP LOCKED)
            UPDATE {schema}.plain_jobs j SET state = 'running', started_at = now() FROM due
            WHERE j.id = due.id RETURNING j.id, j.task, j.args""",
            batch,
        )
        return [row[0] for row in rows]

    def _finish(self, ids: list[object]) -> None:
        self._run(
            """WITH done AS (UPDATE {schema}.plain_jobs SET state = 'succeeded', finished_at = now()
                WHERE id = ANY(%s) AND state = 'running' RETURNING id, started_at)
            INSERT INTO {schema}.plain_runs SELECT id, started_at, now(), 'succeeded' FROM done""",
            ids,
        )

    def pick_up(self, dsn: str, count: int) -> list[float]:
        """Milliseconds from just before INSERT, NOTIFY and COMMIT to a listener having claimed the row."""
        claimed_at: dict[object, float] = {}
        ready, stop = threading.Event(), threading.Event()

        def listen() -> None:
            with psycopg.connect(dsn, autocommit=True) as listener:
                other = Plain.__new__(Plain)
                other._connection, other._schema = listener, self._schema
                listener.execute("LISTEN plain_jobs")
                ready.set()
                while not stop.is_set():
                    list(listener.notifies(timeout=0.2, stop_after=1))
                    for job_id in other._claim(10):
                        claimed_at[job_id] = time.perf_counter()

        thread = threading.Thread(target=listen)
        thread.start()
        ready.wait(10)
        waits: list[float] = []
        for i in range(count):
            time.sleep(0.02 + (i % 7) * 0.005)
            began = time.perf_counter()
            with self._connection.transaction():
                rows = self._run("INSERT INTO {schema}.plain_jobs (task, args) VALUES ('nothing', '{{}}') RETURNING id")
                (job_id,) = rows.fetchone() or (None,)
                self._connection.execute("NOTIFY plain_jobs")
            while job_id not in claimed_at and time.perf_counter() < began + 10:
                time.sleep(0.0002)
            waits.append((claimed_at[job_id] - began) * 1000)
        stop.set()
        thread.join()
        return sorted(waits)
