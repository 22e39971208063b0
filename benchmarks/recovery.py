"""How soon jobs run again after a crash: `python -m benchmarks.recovery`.

Two workers with the default heartbeat and lease share long jobs. First some children are killed, one after the other.
Then whole workers are killed, with their parents. Each recovery lasts from the signal until all jobs of the killed
processes run elsewhere.
"""

from __future__ import annotations

import os
import platform
import signal
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Collection, Generator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import click
from sqlalchemy import Engine, create_engine, delete, select, text
from sqlalchemy.orm import DeclarativeBase, Session

from sqla_jobs import Jobs
from sqla_jobs.postgres import local_postgres

_JOBS = 16
_PATIENCE = 120.0


class Base(DeclarativeBase): ...


jobs = Jobs(Base)


@jobs.task
def hold() -> None:
    time.sleep(3600)


@click.command(context_settings={"show_default": True})
@click.option("--children", default=5, help="Children to kill, one after the other.")
@click.option("--workers", default=3, help="Whole workers to kill.")
def main(children: int, workers: int) -> None:
    """Print the median and the longest recovery for children and for whole workers."""
    with ExitStack() as stack:
        url = stack.enter_context(local_postgres(durable=True))
        engine = create_engine(url)
        stack.callback(engine.dispose)
        Base.metadata.create_all(engine)
        with Session(engine) as session:
            hold.options(max_attempts=1000).enqueue_many(session, [{}] * _JOBS)
            session.commit()
        started = [stack.enter_context(_worker(url)) for _ in range(2)]
        of_child: list[float] = []
        for _ in range(children):
            _wait(lambda: _is_settled(engine))
            of_child.append(_recovery(engine, *_child(engine)))
        of_worker: list[float] = []
        for _ in range(workers):
            _wait(lambda: _is_settled(engine))
            doomed = started.pop(0)
            held = [job for job, process in _running(engine).items() if process in _processes(engine, doomed)]
            of_worker.append(_recovery(engine, partial(os.killpg, doomed.pid, signal.SIGKILL), held))
            started.append(stack.enter_context(_worker(url)))
        print(f"Python {platform.python_version()}, {os.cpu_count()} cores, PostgreSQL {_version(engine)}")
        for what, times in {"a child": of_child, "a worker with its parent": of_worker}.items():
            print(
                f"kill -9 of {what}: p50 {statistics.median(times):.1f} s, longest {max(times):.1f} s of {len(times)}"
            )


@contextmanager
def _worker(url: str) -> Generator[subprocess.Popen[bytes]]:
    """Run a worker with two children in its own process group."""
    command = [sys.executable, "-m", "sqla_jobs.worker", "benchmarks.recovery:jobs", "--database-url", url]
    options = ["--processes", "2", "--concurrency", "8", "--no-clock", "--log-level", "ERROR"]
    process = subprocess.Popen([*command, *options], start_new_session=True)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _child(engine: Engine) -> tuple[Callable[[], None], list[int]]:
    """Return a function that kills the child with the most jobs, and the ids of these jobs."""
    running = _running(engine)
    process = statistics.mode(running.values())
    assert process is not None
    pid = _pids(engine)[process]
    return partial(os.kill, pid, signal.SIGKILL), [job for job, holder in running.items() if holder == process]


def _recovery(engine: Engine, kill: Callable[[], None], held: Collection[int]) -> float:
    assert held
    with Session(engine) as session:  # otherwise, a job would wait after its third loss
        session.execute(delete(jobs.Run))
        session.commit()
    before = _running(engine)
    kill()
    began = time.monotonic()

    def runs_elsewhere() -> bool:
        now = _running(engine)
        return all(now.get(job, before[job]) != before[job] for job in held)

    _wait(runs_elsewhere)
    return time.monotonic() - began


def _running(engine: Engine) -> dict[int, uuid.UUID | None]:
    with Session(engine) as session:
        rows = session.execute(select(jobs.Job.id, jobs.Job.process_id).where(jobs.Job.state == "running"))
        return {row[0]: row[1] for row in rows}


def _pids(engine: Engine) -> dict[uuid.UUID, int]:
    with Session(engine) as session:
        rows = session.execute(select(jobs.Process.id, jobs.Process.pid))
        return {row[0]: row[1] for row in rows}


def _is_settled(engine: Engine) -> bool:
    """Return whether two workers with two children each are running all jobs."""
    pids = _pids(engine).values()
    return len(pids) == 4 and all(Path(f"/proc/{pid}").exists() for pid in pids) and len(_running(engine)) == _JOBS


def _processes(engine: Engine, worker: subprocess.Popen[bytes]) -> set[uuid.UUID]:
    return {process for process, pid in _pids(engine).items() if os.getpgid(pid) == worker.pid}


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"no recovery within {_PATIENCE:g} s")
        time.sleep(0.02)


def _version(engine: Engine) -> str:
    with engine.connect() as connection:
        return str(connection.scalar(text("SHOW server_version")))


if __name__ == "__main__":
    main()
