"""The released library and this one at work on one database, each in processes of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from benchmarks.against import sources_of
from sqla_jobs.models.version import LATEST
from tests.conftest import ROOT

SHOP = "rehearsed_shop"


class Library:
    """The programs of one version of the library, with the application `tests/rehearsed_shop.py`."""

    def __init__(self, sources: Path, folder: Path, url: str, stack: ExitStack) -> None:
        self._folder = folder
        self._url = url
        self._stack = stack
        self._environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(sources), str(folder)])}
        folder.mkdir()
        shutil.copy(ROOT / f"tests/{SHOP}.py", folder)
        found = self.python("-c", "import sqla_jobs; print(sqla_jobs.__file__)")
        assert Path(found.strip()).is_relative_to(sources)

    def python(self, *arguments: str, code: int = 0) -> str:
        """Run Python, and return what it printed."""
        command = [sys.executable, "-P", *arguments]
        done = subprocess.run(
            command, cwd=self._folder, env=self._environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def create(self) -> None:
        self.python(f"{SHOP}.py", "create", self._url)

    def sqla_jobs(self, command: str, *options: str, code: int = 0) -> str:
        """Run a command of the library."""
        arguments = ("-m", "sqla_jobs", command, f"{SHOP}:jobs", "--database-url", self._url, *options)
        return self.python(*arguments, code=code)

    def start(self, *arguments: str, piped: bool = False) -> subprocess.Popen[str]:
        """Start Python as a process group of its own. Its log is a file that a failure of the test shows."""
        log = (self._folder / f"{len(list(self._folder.glob('*.log')))}.log").open("w", encoding="utf-8")
        pipe = subprocess.PIPE if piped else None
        process = subprocess.Popen(
            [sys.executable, "-P", *arguments],
            cwd=self._folder,
            env=self._environment,
            stdin=pipe,
            stdout=pipe or log,
            stderr=log,
            text=True,
            start_new_session=True,
        )
        self._stack.callback(_end, process)
        self._stack.callback(log.close)
        return process

    def worker(self, *options: str) -> Worker:
        arguments = ("-m", "sqla_jobs.worker", f"{SHOP}:jobs", "--database-url", self._url, "--heartbeat", "0.5")
        return Worker(self.start(*arguments, *options))

    def enqueuer(self, mode: str) -> Enqueuer:
        return Enqueuer(self.start(f"{SHOP}.py", mode, self._url, piped=True))


class Worker:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def stop(self) -> None:
        """End it as a deploy does: it finishes the jobs that it runs."""
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(40) == 0


class Enqueuer:
    """A process that enqueues all the time."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        assert self._hear() == "begun"

    def use(self, queue: str) -> None:
        assert self._process.stdin is not None
        print(queue, file=self._process.stdin, flush=True)
        assert self._hear() == "changed"

    def stop(self) -> float:
        """Return the seconds of its longest transaction."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        told: dict[str, Any] = json.loads(self._hear())
        assert self._process.wait(20) == 0
        assert told["number"] > 0
        return float(told["longest"])

    def _hear(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def last_release_before(version: int) -> str:
    """Return the commit of the newest release that creates older tables. `.ci/released` lists all, newest first."""
    lines = ROOT.joinpath(".ci/released").read_text(encoding="utf-8").splitlines()
    return next(commit for commit, _ in map(str.split, lines) if _version_at(commit) < version)


def _version_at(commit: str) -> int:
    """Return the version of the tables that a commit creates."""
    command = ["git", "-C", str(ROOT), "show", f"{commit}:sqla_jobs/models/version.py"]
    source = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (found,) = re.findall(r"^LATEST = (\d+)$", source, re.MULTILINE)
    return int(found)


@contextmanager
def both(folder: Path, url: str) -> Generator[tuple[Library, Library]]:
    """Yield the released library and this one. Whatever they started has ended afterwards."""
    with ExitStack() as stack:
        sources = stack.enter_context(sources_of(last_release_before(LATEST)))
        try:
            yield Library(sources, folder / "released", url, stack), Library(ROOT, folder / "now", url, stack)
        finally:
            for log in sorted(folder.glob("*/*.log")):
                print(log.relative_to(folder), log.read_text(encoding="utf-8"), sep="\n")


def _end(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
