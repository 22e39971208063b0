"""Programs that some tests drive and pip does not bring: each is found here, or installed: `python -m tests.programs`.

`make test` does that once for each environment. A test says what it needs: `@pytest.mark.needs(BROWSER)`.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from playwright.sync_api import sync_playwright

_DEADLINE = 300.0
"""Seconds a command may take to install something: some networks answer nothing."""
_SBIN = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/bin")
"""Folders of programs that a user's PATH may lack."""


@dataclass(frozen=True)
class Program:
    """A program under the names it may have, and the Debian package that has it."""

    package: str
    names: tuple[str, ...]

    @property
    def remedy(self) -> str:
        """How a person gets it."""
        return f"Install {self.package} with the system's package manager (Debian: apt-get install {self.package})."

    def find(self) -> str | None:
        """The path of the first that runs: a name on the PATH may be a shim that only says what to install."""
        path = os.pathsep.join([*os.get_exec_path(), *_SBIN])
        there = (found for name in self.names if (found := shutil.which(name, path=path)))
        return next((found for found in there if _runs(found)), None)

    def get(self) -> str | None:
        """Install it: returns its path after the first command that helped, and tells of each command."""
        for command in self.ways():
            print(f"{self.package} is missing: {shlex.join(command)}", flush=True)
            if complaint := run(command):
                print(complaint, flush=True)
            if found := self.find():
                return found
        return None

    def ways(self) -> Iterator[list[str]]:
        """The commands that may install it here."""
        if os.geteuid() == 0 and shutil.which("apt-get"):
            install = ["apt-get", "install", "-y", "-qq", "-o", "DPkg::Lock::Timeout=60", self.package]
            yield install
            yield ["apt-get", "update", "-qq"]
            yield install


class Browser(Program):
    """One that Playwright can drive, which has its own way to get one."""

    @property
    def remedy(self) -> str:
        return f"Run `{shlex.join(_playwright())}`, or install chromium or Google Chrome."

    def find(self) -> str | None:
        return super().find() or _of_playwright()

    def ways(self) -> Iterator[list[str]]:
        yield from super().ways()
        # as root it may install the libraries that its browser needs, too
        yield _playwright("--with-deps") if os.geteuid() == 0 and shutil.which("apt-get") else _playwright()


BROWSER = Browser(
    "chromium",
    (
        "chromium",
        "chromium-browser",
        "google-chrome",
        "google-chrome-stable",
        "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
        "/Applications/Chromium.app/Contents/MacOS/Chromium",
    ),
)
PGBOUNCER = Program("pgbouncer", ("pgbouncer",))


@cache
def found(program: Program) -> str | None:
    """The path of a program, which is looked for once."""
    return program.find()


def _playwright(*options: str) -> list[str]:
    python, here = Path(sys.executable), Path.cwd()
    shown = python.relative_to(here) if python.is_relative_to(here) else python
    return [str(shown), "-m", "playwright", "install", *options, "chromium"]


def _of_playwright() -> str | None:
    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if _runs(path) else None


def _runs(path: str) -> bool:
    try:
        return subprocess.run([path, "--version"], capture_output=True, timeout=30, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def run(command: list[str]) -> str:
    """Run it, and end it with all that it started after the deadline; returns why it failed, or nothing."""
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environment, start_new_session=True
        )
        try:
            code = process.wait(_DEADLINE)
        except subprocess.TimeoutExpired:
            return f"{command[0]} did not end within {_DEADLINE:g} s."
        finally:
            _end(process)
        said.seek(0)
        lines = [line.strip() for line in said if line.strip()]
    if code == 0:
        return ""
    return next((line for line in lines if "rror" in line), lines[-1] if lines else f"{command[0]} ended with {code}.")


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        for number in (signal.SIGTERM, signal.SIGKILL):  # a package manager ends in order
            os.killpg(process.pid, number)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                continue
            return


def main() -> None:
    """Find or install each; what cannot be had is told, and the tests that need it say so again."""
    for program in (BROWSER, PGBOUNCER):
        if not (program.find() or program.get()):
            print(f"Tests that need {program.package} are left out. {program.remedy}", file=sys.stderr)


if __name__ == "__main__":
    main()
