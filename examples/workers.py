"""Worker processes that an example kills. Other processes repeat the work that a killed one had not committed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from sqla_jobs import Jobs

Worker = subprocess.Popen[bytes]


@contextmanager
def worker(application: str, options: Sequence[str], log: Path, **environment: str) -> Generator[Worker]:
    """Run `python -m sqla_jobs.worker APPLICATION` during the block, and stop it gracefully at the end."""
    command = [sys.executable, "-m", "sqla_jobs.worker", application, "--log-level", "WARNING", *options]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C must reach only the example, which then stops its workers
        )
    try:
        yield process
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=15)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def pids_of(jobs: Jobs[Any], worker: Worker, session: Session) -> list[int]:
    """Return the pids of those processes in the database that belong to the worker."""
    found = list[int]()
    for pid in session.scalars(select(jobs.Process.pid)):
        with suppress(ProcessLookupError):  # it has ended, and a dead one's pid may have been reused
            if worker.poll() is None and os.getpgid(pid) == worker.pid:
                found.append(pid)
    return found


def kill_busiest_child(jobs: Jobs[Any], worker: Worker, session: Session) -> str:
    """Kill the child with the most running jobs, and describe that. Its parent replaces it."""
    job, process = jobs.Job, jobs.Process
    children = [pid for pid in pids_of(jobs, worker, session) if pid != worker.pid]
    held = select(process.pid, func.count(job.id)).outerjoin(
        job, (job.process_id == process.id) & (job.state == "running")
    )
    counts = {pid: count for pid, count in session.execute(held.group_by(process.pid)).all() if pid in children}
    if not counts:
        return ""
    pid = max(counts, key=lambda pid: counts[pid])
    os.kill(pid, signal.SIGKILL)
    return f"  kill -9 {pid}: it ran {counts[pid]} job{'s' * (counts[pid] != 1)}"
