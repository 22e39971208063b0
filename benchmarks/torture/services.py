"""Worker processes that are started again when they end, as a service manager would do."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from benchmarks.torture.app import POISONED
from benchmarks.torture.hosts import Host

ROOT = Path(__file__).parents[2]
_WORKER = [sys.executable, "-m", "sqla_jobs.worker"]
_PAUSE = 0.5
"""Seconds from the end of a service to its next start."""
_HELPERS = ("resource_tracker", "forkserver")
_NO_DATABASE = "the database says"
"""Words in the log of a worker that was started while the server was down."""


def knows(option: str) -> bool:
    """Return whether a worker has this option."""
    done = subprocess.run([*_WORKER, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    return option in done.stdout


class Service:
    """A worker command on a host, which is started again whenever it ends by itself."""

    def __init__(self, host: Host, number: int, environment: dict[str, str], options: list[str], logs: Path) -> None:
        self.host = host
        self.name = f"{host.name}/{number}"
        self.breaches: list[str] = []
        self._command = [*host.prefix, *_WORKER, "benchmarks.torture.app:jobs", *options]
        self._mark = f"TORTURE_SERVICE={uuid.uuid4()}"
        name, mark = self._mark.split("=")
        self._environment = os.environ | environment | {"PYTHONUNBUFFERED": "1", name: mark}
        self._log = logs / f"{host.name}-{number}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._start_at = 0.0
        self._log_from = 0
        self._signalled = False
        self._given_up = False

    def keep(self) -> None:
        """Start the command if it is not running and its pause is over."""
        if self._process is not None and (code := self._process.poll()) is not None:
            self._check_exit(code)
            self._process = None
            self._start_at = time.monotonic() + _PAUSE
        if self._process is None and not self._given_up and time.monotonic() >= self._start_at:
            self._start()

    def _start(self) -> None:
        with self._log.open("ab") as log:
            self._log_from = log.tell()
            self._process = subprocess.Popen(
                self._command, cwd=ROOT, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )
        self._signalled = False

    def _check_exit(self, code: int) -> None:
        if self._signalled or code == POISONED:
            return
        with self._log.open("rb") as log:
            log.seek(self._log_from)
            said = log.read().decode(errors="replace")
        if code != 1 or _NO_DATABASE not in said:
            self.breaches.append(f"the worker {self.name} ended by itself with exit code {code}:\n{said[-3000:]}")

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pids(self) -> list[int]:
        """The pids of the command's own process and of its descendants."""
        if self._process is None or self._process.poll() is not None:
            return []
        return [self._process.pid, *_descendants(self._process.pid)]

    def pick(self, rng: random.Random) -> tuple[int, list[int]]:
        """Pick one process of the command. Return its pid, and all pids that stop with it."""
        pids = self.pids
        picked = rng.choice(pids)
        return picked, pids if picked == pids[0] else [picked]

    def signal(self, pid: int, number: signal.Signals) -> None:
        """Send a signal to a process of the command, unless that process has ended."""
        if pid in self.pids:
            self._signalled = self._signalled or number in (signal.SIGKILL, signal.SIGTERM)
            os.kill(pid, number)

    def renew(self) -> None:
        """Have the parent replace its children one by one, as for a deploy."""
        if self._process is not None:
            self._process.send_signal(signal.SIGHUP)

    def stop(self) -> None:
        """Ask the command to end, and do not start it again."""
        self._given_up = True
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def ended(self, timeout: float) -> None:
        """Wait for the end that `stop` asked for. It must come in time and with exit code 0."""
        if self._process is None:
            return
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.breaches.append(f"the worker {self.name} did not end within {timeout:g} s of SIGTERM")
            return
        if code != 0:
            self.breaches.append(f"the worker {self.name} ended with {code} after SIGTERM")

    def kill(self) -> None:
        """Kill the command and all processes that it started, even those that its parent left behind."""
        self._given_up = True
        for pid, _ in _processes():
            with suppress(OSError):  # it ended meanwhile
                if self._mark in Path(f"/proc/{pid}/environ").read_text(errors="replace"):
                    os.kill(pid, signal.SIGKILL)
        if self._process is not None:
            self._process.wait()


def _processes() -> Iterator[tuple[int, int]]:
    """Yield the pid and the parent's pid of every process on this machine. Without /proc, yield nothing."""
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            state, parent, *_ = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
            if state != "Z":
                yield int(entry.name), int(parent)


def _descendants(pid: int) -> Iterator[int]:
    """Yield the descendants of a process, without multiprocessing's own helpers."""
    there = list(_processes())
    below = [pid]
    while below:
        parent = below.pop()
        children = sorted(child for child, its_parent in there if its_parent == parent)
        below += children
        yield from (child for child in children if not _is_helper(child))


def _is_helper(pid: int) -> bool:
    with suppress(OSError):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        return any(helper in command for helper in _HELPERS)
    return True
