"""What a worker costs: WAL, statements, CPU time, memory, and calls of functions.

`python -m benchmarks.cost [KIND ...]` names the functions that a worker calls for a job. Unlike a time, the number of
calls is the same on every machine, even a busy one, to within 1 %.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import click
from sqlalchemy import Engine, text

from benchmarks.report import Figure
from benchmarks.versions import KINDS, durable_server, pair

_IDLE = 20.0
_ROUNDS = 5
_COUNTS = {"plain": 5000, "transactional": 1000, "limited": 2000, "coroutine": 3000}
_READ = """SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn,
    (SELECT xact_commit FROM pg_stat_database WHERE datname = current_database())"""
_FILL = """INSERT INTO sqla_jobs (task, args, state)
    SELECT 'carry', jsonb_build_object('i', n, 'ballast', ballast), 'queued' FROM generate_series(1, :count) n,
    LATERAL (SELECT coalesce(string_agg(md5(n || ' ' || k), ''), '') FROM generate_series(1, :parts) k) x(ballast)"""
"""Jobs whose arguments cannot be compressed."""


def _read(engine: Engine) -> tuple[float, float]:
    """Return the bytes of WAL and the committed transactions of the whole database so far.

    Server processes report their counts a second late, idle ones only after ten, and each when it ends.
    """
    engine.dispose()
    time.sleep(1.5)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        log, transactions = connection.execute(text(_READ.replace("::", r"\:\:"))).one()
    return float(log), float(transactions)


def measure(server: Engine, jobs_in_all: int) -> Iterator[Figure]:
    with pair(server, "plain") as both:
        both.work()
        time.sleep(12)  # by then, the server has counted the transactions of the worker's start
        (_, before), cpu = _read(both.engine), both.worker.ask("usage")
        time.sleep(_IDLE)
        cpu_then, (_, after) = both.worker.ask("usage"), _read(both.engine)
        yield Figure("cost", "idle: statements", "per second", (after - before) / (_IDLE + 1.5))
        yield Figure("cost", "idle: processor", "%", 100 * (cpu_then - cpu) / _IDLE)
        yield Figure("cost", "idle: resident memory", "MB", both.worker.ask("memory"))
    for size in (0, 1_500, 50_000):
        yield _log(server, 2_000 if size else 20_000, size)
    with pair(server, "plain") as both:
        both.work()
        each, memory, cpu = jobs_in_all // _ROUNDS, list[float](), 0.0
        for _ in range(_ROUNDS):
            cpu += both.drain(each).cpu / _ROUNDS
            memory.append(both.worker.ask("memory"))
    yield Figure("cost", "processor of the worker", "µs/job", cpu)
    yield Figure("cost", f"memory after {each:,} jobs", "MB", memory[0])
    yield Figure("cost", f"memory after {each * _ROUNDS:,} jobs", "MB", memory[-1])


def _log(server: Engine, count: int, size: int) -> Figure:
    """Return the bytes of WAL for a job: for its claim, its end and its run, including images of whole pages."""
    with pair(server, "ballast") as both:
        with both.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(_FILL), {"count": count, "parts": size // 32})
            connection.execute(text("VACUUM ANALYZE"))
            connection.execute(text("CHECKPOINT"))
        before, _ = _read(both.engine)
        both.work()
        both.wait(count)
        after, _ = _read(both.engine)
    what = f"arguments of {size:,} bytes" if size else "small arguments"
    return Figure("cost", f"log, {what}", "bytes/job", (after - before) / count)


class CallsOfAJob(NamedTuple):
    """The average number of calls for a job: of Python functions, from them to C functions, and of each by its name."""

    python: float
    in_c: float
    functions: list[tuple[str, float]]


def count_calls(server: Engine, kind: str, *, drains: int = 6, count: int | None = None) -> CallsOfAJob:
    """Count the calls in the threads of one worker. The result comes from the drain with the fewest calls.

    Nearly all calls are made once for each job. The others are made once for each batch of claims or ends, and a busy
    machine makes more batches. The first drain is ignored, since it begins with small batches.
    """
    count, called = count or _COUNTS[kind], list[Counter[str]]()
    with pair(server, kind) as both:
        before = Counter[str](both.worker.ask("calls"))
        both.work()
        for _ in range(1 + drains):
            both.drain(count)
            so_far = Counter[str](both.worker.ask("calls"))
            called.append(so_far - before)
            before = so_far
    fewest = min(called[1:], key=lambda calls: calls.total() - calls[""])
    in_c = fewest.pop("")
    functions = [(function, number / count) for function, number in fewest.most_common()]
    return CallsOfAJob(fewest.total() / count, in_c / count, functions)


def calls(server: Engine) -> Iterator[Figure]:
    for kind in KINDS:
        yield Figure("calls of Python functions", kind, "calls/job", count_calls(server, kind).python)


@click.command(context_settings={"show_default": True})
@click.argument("kinds", metavar="[KIND ...]", nargs=-1, type=click.Choice(KINDS))
@click.option("--least", default=0.02, help="Leave out functions that a job calls less often than this.")
def main(kinds: Sequence[str], least: float) -> None:
    """Count the calls of Python functions, in the threads of a worker, for each job of a KIND, or of all kinds."""
    with durable_server() as server:
        for kind in kinds or KINDS:
            found = count_calls(server, kind)
            click.echo(f"{kind}: {found.python:.1f} calls a job of functions in Python, {found.in_c:.1f} in C")
            for function, number in found.functions:
                if number >= least:
                    click.echo(f"{number:10.3f}  {function}")


if __name__ == "__main__":
    main()
