"""Worker processes that an example kills. Other processes repeat the work that a killed one had not committed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from sqla_jobs import Jobs


class Workers:
    """The two processes of a worker command. The parent process replaces each of them that dies."""

    def __init__(self, jobs: Jobs[Any], parent: subprocess.Popen[bytes]) -> None:
        self._jobs, self._parent = jobs, parent

    def kill(self, session: Session, most: int = 1) -> list[str]:
        """Kill up to `most` of the processes with SIGKILL, the busiest first. Return a line about each."""
        job, process = self._jobs.Job, self._jobs.Process
        held = func.count(job.id)
        is_held = (job.process_id == process.id) & (job.state == "running")
        counted = select(process.pid, held).outerjoin(job, is_held).group_by(process.pid)
        lines: list[str] = []
        for pid, count in session.execute(counted.order_by(held.desc())):
            if len(lines) < most and self._is_one(pid):
                os.kill(pid, signal.SIGKILL)
                lines.append(f"  kill -9 {pid}: it ran {count} job{'s' * (count != 1)}")
        return lines

    def _is_one(self, pid: int) -> bool:
        """Return whether the pid belongs to a live process of the worker; a dead one's pid may have been reused."""
        with suppress(ProcessLookupError):
            return pid != self._parent.pid and os.getpgid(pid) == self._parent.pid
        return False


@contextmanager
def workers(jobs: Jobs[Any], application: str, url: str, log: Path) -> Generator[Workers]:
    """Run `python -m sqla_jobs.worker APPLICATION` during the block."""
    command = [sys.executable, "-m", "sqla_jobs.worker", application, "--processes", "2", "--log-level", "WARNING"]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so on SIGTERM the program stops its worker first
    with log.open("wb") as output:
        parent = subprocess.Popen(
            command,
            env=os.environ | {"DATABASE_URL": url},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield Workers(jobs, parent)
    finally:
        parent.terminate()
        with suppress(subprocess.TimeoutExpired):
            parent.wait(timeout=15)
        with suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)
        parent.wait()
