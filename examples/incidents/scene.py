"""The scene of an incident: tables, a worker, a mail server that can fail, and a person at a command line."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from signal import SIGKILL
from typing import Self

from click.testing import CliRunner
from sqlalchemy import Engine, create_engine, func, select, text
from sqlalchemy.orm import Session

from examples.incidents.shop import MAIL_PORT, Base, jobs
from sqla_jobs.cli.main import main

WORKER = ("--queues", "default=4,mail=4", "--heartbeat", "0.5", "--lease", "3", "--grace", "3")
PATIENCE = 60.0
"""Seconds to wait for a condition before the incident counts as failed."""
LINES, COLUMNS = 16, 118
"""How many lines of a command's output are shown, and how many characters of each line."""


class WentWrong(Exception):
    """An incident went differently from what docs/operating.md says."""


class Scene:
    """The tables of one incident, a worker and a mail server. The tables are empty at first, and dropped at the end."""

    def __init__(self, url: str) -> None:
        self.engine: Engine = create_engine(url)
        self.mail = socket.socket()
        self.mail.bind(("127.0.0.1", 0))  # it does not listen yet
        self.environment = {
            **os.environ,
            "DATABASE_URL": url,
            "SQLA_JOBS_APP": "examples.incidents.shop:jobs",
            MAIL_PORT: str(self.mail.getsockname()[1]),
        }
        self._worker: subprocess.Popen[bytes] | None = None
        self._log = tempfile.NamedTemporaryFile(prefix="worker-", suffix=".log")  # noqa: SIM115

    def __enter__(self) -> Self:
        Base.metadata.create_all(self.engine)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_worker()
        with suppress(OSError):
            self.mail.shutdown(socket.SHUT_RDWR)  # ends the thread that answers
        self.mail.close()
        self._log.close()
        Base.metadata.drop_all(self.engine)
        self.engine.dispose()

    def start_worker(self, *options: str, **deployed: str) -> None:
        """Start a worker in place of the running one. `deployed` sets environment variables that change the code."""
        self.stop_worker()
        command = [sys.executable, "-m", "sqla_jobs.worker", *WORKER, *options]
        with Path(self._log.name).open("ab") as log:
            self._worker = subprocess.Popen(
                command,
                env=self.environment | deployed,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C must reach only this program, which then stops its worker
            )
        alive = select(func.count()).where(jobs.Process.kind == "worker")
        self.until("the worker is ready", lambda: self.ask(alive) > 0)

    def stop_worker(self) -> None:
        """Stop the worker gracefully, if one is running."""
        if self._worker is None:
            return
        try:
            self._worker.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._worker.wait(timeout=15)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self._worker.pid, SIGKILL)
            self._worker.wait()
            self._worker = None

    def answer_mail(self) -> None:
        """Let the mail server answer from now on."""
        self.mail.listen(64)
        threading.Thread(target=self._answer_mail, daemon=True).start()

    def _answer_mail(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self.mail.accept()
                with client:
                    client.sendall(b"250 taken")

    @contextmanager
    def session(self) -> Generator[Session]:
        """Open a session of the application, and commit it at the end."""
        with Session(self.engine) as session, session.begin():
            yield session

    def ask(self, question: object) -> int:
        """Return a number that a query selects."""
        with Session(self.engine) as session:
            return int(session.scalar(question) or 0)  # type: ignore[call-overload]

    def number(self, **of: object) -> int:
        """Return the number of jobs whose columns have these values."""
        return self.ask(select(func.count()).select_from(jobs.Job).filter_by(**of))

    def until(self, what: str, is_so: Callable[[], bool]) -> None:
        """Wait until `is_so` returns True, for at most PATIENCE seconds."""
        deadline = time.monotonic() + PATIENCE
        while not is_so():
            if time.monotonic() > deadline:
                raise WentWrong(f"after {PATIENCE:.0f} s it is not so that {what}")
            time.sleep(0.05)

    def say(self, told: str) -> None:
        """Print what happens, or what the person does without a command."""
        print(f"\n# {told}", flush=True)

    def run(self, command: str, shows: str = "", *, code: int = 0) -> str:
        """Run a command that the person types. Return its output, which must match `shows`."""
        print(f"\n$ {command}", flush=True)
        program, *arguments = shlex.split(command)
        if program == "sqla-jobs":  # in this process: a new one would spend most of its time on imports
            typed = CliRunner().invoke(main, arguments, prog_name=program, env=self.environment, catch_exceptions=False)
            output, ended = typed.output, typed.exit_code
        else:
            done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
            output, ended = done.stdout + done.stderr, done.returncode
        print(cut(output, shows), flush=True)
        if ended != code:
            raise WentWrong(f"`{command}` exits with {ended}: {output}")
        found(shows, output)
        return output

    def psql(self, statement: str) -> None:
        """Execute a statement that the person types into psql."""
        print(f'\n$ psql -c "{statement}"', flush=True)
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            done = connection.execute(text(statement))
            print(f"  {done.scalar()}" if done.returns_rows else f"  {statement.partition(' ')[0]}", flush=True)

    def log(self, shows: str) -> None:
        """Wait until the worker's log matches `shows`, and print the matching lines as the person sees them."""
        path = Path(self._log.name)
        self.until(f"the log shows {shows!r}", lambda: re.search(shows, path.read_text()) is not None)
        print("\n$ journalctl -u shop-worker", flush=True)
        print(cut("\n".join(line for line in path.read_text().splitlines() if re.search(shows, line))), flush=True)


def found(pattern: str, output: str) -> re.Match[str]:
    """Return the match of the pattern in the output; raise `WentWrong` if there is none."""
    if (match := re.search(pattern, output)) is None:
        raise WentWrong(f"{pattern!r} is not in:\n{output}")
    return match


def pasted(output: str, beginning: str) -> str:
    """Return the command for the person to paste: the one in the output that begins with these words."""
    return found(rf"{re.escape(beginning)}[^`;\n]*", output)[0].strip()


def cut(output: str, wanted: str = "") -> str:
    """Return the part of the output to show.

    "ok" lines are left out, unless they match `wanted`. Of a long output, only the beginning and the end are shown.
    """
    lines = [line.rstrip() for line in output.splitlines() if re.search(r"\w", line)]
    lines = [line for line in lines if not line.startswith("ok ") or (wanted and re.search(wanted, line))]
    if more := max(0, len(lines) - LINES):
        lines[LINES // 2 : LINES // 2 + more] = [f"… {more} lines more"]
    return "\n".join(shown for line in lines for shown in fitted(line))


def fitted(line: str) -> list[str]:
    """Cut a line of a table at the screen's width, and wrap any other line."""
    if "   " in line.strip():
        return [f"  {line[:COLUMNS]}"]
    indent = " " * (2 + len(line) - len(line.lstrip()))
    return textwrap.wrap(line.strip(), COLUMNS, initial_indent=indent, subsequent_indent=f"{indent}  ")
