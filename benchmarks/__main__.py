"""`python -m benchmarks`: enqueue, drain and pick-up beside the same work in plain psycopg, as ratios of one run.

Every loop is bounded. On DATABASE_URL (tables in a schema of their own, dropped afterwards), or on a durable
PostgreSQL started for the purpose.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

import click
import psycopg
from sqlalchemy import Engine, create_engine, make_url, select, text
from sqlalchemy.orm import DeclarativeBase, Session

from benchmarks import plain
from sqla_jobs import Jobs
from sqla_jobs.postgres import local_postgres

SCHEMA = "sqla_jobs_benchmark"


class Base(DeclarativeBase):
    pass


jobs = Jobs(Base, schema=SCHEMA)
started: dict[int, float] = {}


@jobs.task
def nothing(i: int) -> None:
    started[i] = time.perf_counter()


@contextmanager
def database() -> Generator[Engine]:
    if url := os.environ.get("DATABASE_URL"):
        with _schema(url) as engine:
            yield engine
    else:
        with local_postgres(durable=True) as url, _schema(url) as engine:
            yield engine


@contextmanager
def _schema(url: str) -> Generator[Engine]:
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"))
    with engine.begin() as connection:
        connection.execute(text(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE"))
        connection.execute(text(f"CREATE SCHEMA {SCHEMA}"))
    try:
        Base.metadata.create_all(engine)
        yield engine
    finally:
        with engine.begin() as connection:
            connection.execute(text(f"DROP SCHEMA {SCHEMA} CASCADE"))
        engine.dispose()


def empty(engine: Engine) -> None:
    with engine.begin() as connection:
        for table in (jobs.Job, jobs.Run):
            connection.execute(text(f"TRUNCATE {table.__table__.fullname}"))  # type: ignore[attr-defined]
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))


def enqueue_one_by_one(engine: Engine, count: int) -> float:
    with Session(engine) as session:
        began = time.perf_counter()
        for i in range(count):
            nothing.enqueue(session, i=i)
            session.commit()
        return count / (time.perf_counter() - began)


def enqueue_many(engine: Engine, count: int) -> float:
    with Session(engine) as session:
        began = time.perf_counter()
        nothing.enqueue_many(session, ({"i": i} for i in range(count)))
        session.commit()
        return count / (time.perf_counter() - began)


def drain(engine: Engine, count: int) -> float:
    """From the first job's start until none is left unfinished."""
    started.clear()
    worker = jobs.worker(bind=engine)
    deadline = time.monotonic() + 120
    with worker:
        while worker.runs < count and time.monotonic() < deadline:
            time.sleep(0.005)
        ended = time.perf_counter()
    assert worker.runs == count, (worker.runs, count)
    return count / (ended - min(started.values()))


def pick_up(engine: Engine, count: int) -> list[float]:
    """Milliseconds from just before the enqueue, commit included, to the job's first line, on an idle worker."""
    waits: list[float] = []
    started.clear()
    with jobs.worker(bind=engine), Session(engine) as session:
        for i in range(count):
            time.sleep(0.02 + (i % 7) * 0.005)
            began = time.perf_counter()
            nothing.enqueue(session, i=i)
            session.commit()
            deadline = began + 10
            while i not in started and time.perf_counter() < deadline:
                time.sleep(0.0002)
            waits.append((started[i] - began) * 1000)
    return sorted(waits)


def measured(run: Callable[[], float], before: Callable[[], None], repetitions: int) -> float:
    figures: list[float] = []
    for _ in range(repetitions):
        before()
        figures.append(run())
    return statistics.median(figures)


@click.command()
@click.option("--jobs", "count", default=40_000, show_default=True, help="Jobs of a bulk enqueue and a drain.")
@click.option("--repetitions", default=3, show_default=True)
def main(count: int, repetitions: int) -> None:
    with database() as engine:
        dsn = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(dsn, autocommit=True) as connection:
            bench = plain.Plain(connection, SCHEMA)
            singles = min(count, 3000)

            def clean() -> None:
                empty(engine)
                bench.clean()

            def filled() -> None:
                clean()
                enqueue_many(engine, count)
                bench.enqueue_many(count)
                with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as vacuum:
                    vacuum.execute(text("VACUUM ANALYZE"))

            rows = [
                (
                    "enqueue one by one",
                    lambda: enqueue_one_by_one(engine, singles),
                    lambda: bench.enqueue(singles),
                    clean,
                ),
                ("enqueue_many", lambda: enqueue_many(engine, count), lambda: bench.enqueue_many(count), clean),
                ("drain", lambda: drain(engine, count), lambda: bench.drain(1000), filled),
            ]
            click.echo(f"{'':<20}{'sqla_jobs':>14}{'plain psycopg':>16}{'ratio':>9}")
            for name, ours, theirs, before in rows:
                a, b = measured(ours, before, repetitions), measured(theirs, before, repetitions)
                click.echo(f"{name:<20}{a:>12,.0f}/s{b:>14,.0f}/s{a / b:>8.0%}")
            clean()
            waits = pick_up(engine, 100)
            ideal = bench.pick_up(dsn, 100)
            for label, share in (("pick-up p50", 0.5), ("pick-up p95", 0.95)):
                a, b = waits[int(len(waits) * share)], ideal[int(len(ideal) * share)]
                click.echo(f"{label:<20}{a:>11.2f} ms{b:>13.2f} ms{a / b:>8.1f}x")
            with Session(engine) as session:
                assert session.scalar(select(jobs.Job.id).where(jobs.Job.state != "succeeded").limit(1)) is None


if __name__ == "__main__":
    main()
