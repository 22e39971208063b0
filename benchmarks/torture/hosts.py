"""Hosts for workers, each with a network of its own if that is possible, and the workers that are kept running."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

from benchmarks.torture.app import POISONED
from benchmarks.versions import ROOT
from tests.proxy import Proxy

_PAUSE = 0.5
"""Seconds from the end of a service to its next start."""
_NAMES = ("host-a", "host-b", "the load")
_HELPER = "resource_tracker"
_FIRST_USER = 61_000
"""The number of the first user that no account has: the kernel limits the threads of any user except root."""
_NO_DATABASE = "the database says"
"""Words in the log of a worker that was started while the server was down."""


class Host:
    """A host on this machine's own loopback interface. Its programs reach the server only through `proxy`."""

    def __init__(self, number: int, server: tuple[str, int], *, listen: str = "127.0.0.1") -> None:
        self.name = _NAMES[number]
        self.proxy = Proxy(server, listen=listen)
        self.prefix: list[str] = []  # which makes a command run on this host
        self._stack = ExitStack()

    def __enter__(self) -> Host:
        self._stack.enter_context(self.proxy)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def partition(self) -> None:
        """Lose every packet between this host and the server. Connections are neither closed nor refused."""
        self.proxy.stall()

    def heal(self) -> None:
        self.proxy.go_on()


class NamespaceHost(Host):
    """A network namespace behind a pair of virtual interfaces. A partition takes down the outer interface.

    Each has four addresses of 198.18.0.0/15, for tests of networks (RFC 2544), which depend on the program's pid.
    """

    def __init__(self, number: int, server: tuple[str, int]) -> None:
        base = (os.getpid() % 16_000 * 2 + number) * 4
        network = f"198.{18 + (base >> 16)}.{base >> 8 & 255}"
        self._inside = f"{network}.{base % 256 + 2}"
        self._namespace = f"torture-{os.getpid()}-{number}"
        self._cable = f"tort{os.getpid() % 10_000_000}-{number}"
        super().__init__(number, server, listen=f"{network}.{base % 256 + 1}")
        self.prefix = ["ip", "netns", "exec", self._namespace]

    def __enter__(self) -> Host:
        inside = partial(_ip, "-n", self._namespace)
        with ExitStack() as undo:
            _ip("netns", "add", self._namespace)
            undo.callback(_ip, "netns", "del", self._namespace)  # this also deletes the cable
            _ip("link", "add", self._cable, "type", "veth", "peer", "name", "eth0", "netns", self._namespace)
            _ip("addr", "add", f"{self.proxy.listen}/30", "dev", self._cable)
            _ip("link", "set", self._cable, "up")
            inside("addr", "add", f"{self._inside}/30", "dev", "eth0")
            inside("link", "set", "eth0", "up")
            inside("link", "set", "lo", "up")
            undo.enter_context(self.proxy)
            self._stack = undo.pop_all()
        return self

    def partition(self) -> None:
        _ip("link", "set", self._cable, "down")

    def heal(self) -> None:
        _ip("link", "set", self._cable, "up")


def can_make_namespaces() -> bool:
    """Try to create a network namespace with virtual interfaces. Return whether this program may do that."""
    try:
        with NamespaceHost(0, ("127.0.0.1", 1)) as host:
            return not subprocess.run([*host.prefix, "true"], check=False, capture_output=True).returncode
    except (OSError, subprocess.CalledProcessError):
        return False


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, stderr=subprocess.DEVNULL)


class Service:
    """A worker command on a host, which is started again whenever it ends by itself, as by a service manager."""

    def __init__(self, host: Host, environment: dict[str, str], options: list[str], logs: Path) -> None:
        self.host = host
        self.breaches: list[str] = []
        worker = [sys.executable, "-m", "sqla_jobs.worker", "benchmarks.torture.app:jobs"]
        self._command = [*host.prefix, *_as_user(_FIRST_USER + os.getpid() % 4000), *worker, *options]
        self._mark = f"TORTURE_SERVICE={uuid.uuid4()}"
        name, mark = self._mark.split("=")
        self._environment = os.environ | environment | {"PYTHONUNBUFFERED": "1", name: mark}
        self._log = logs / f"{host.name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._start_at = 0.0
        self._log_from = 0
        self._signalled = False
        self._given_up = False
        self._lifts: list[Callable[[], object]] = []

    def keep(self) -> None:
        """Start the command if it is not running and its pause is over."""
        if self._process is not None and (code := self._process.poll()) is not None:
            self._check_exit(code)
            self._process = None
            self._start_at = time.monotonic() + _PAUSE
        if self._process is None and not self._given_up and time.monotonic() >= self._start_at:
            with self._log.open("ab") as log:
                self._log_from = log.tell()
                self._process = subprocess.Popen(
                    self._command, cwd=ROOT, env=self._environment, stdout=log, stderr=log, start_new_session=True
                )
            self._signalled = False

    def _check_exit(self, code: int) -> None:
        said = self._log.read_bytes()[self._log_from :].decode(errors="replace")
        if not self._signalled and code != POISONED and (code != 1 or _NO_DATABASE not in said):
            self.breaches.append(f"the worker on {self.host.name} ended by itself with {code}:\n{said[-3000:]}")

    @property
    def pids(self) -> list[int]:
        """The pids of the command's own process and of its children, without the processes that jobs left behind."""
        if self._process is None or self._process.poll() is not None:
            return []
        return [self._process.pid, *_children(self._process.pid)]

    def signal(self, pid: int, number: signal.Signals) -> None:
        """Send a signal to a process of the command, unless that process has ended."""
        if pid in self.pids:
            self._signalled = self._signalled or number in (signal.SIGKILL, signal.SIGTERM)
            os.kill(pid, number)

    def starve(self) -> None:
        """From now on, no process of the command can start a thread or a process."""
        for pid in self.pids:
            with suppress(OSError):  # it ended meanwhile
                soft, hard = resource.prlimit(pid, resource.RLIMIT_NPROC)
                resource.prlimit(pid, resource.RLIMIT_NPROC, (1, hard))
                self._lifts.append(partial(resource.prlimit, pid, resource.RLIMIT_NPROC, (soft, hard)))

    def feed(self) -> None:
        """End what `starve` began."""
        while self._lifts:
            with suppress(OSError):
                self._lifts.pop()()

    def drain(self) -> None:
        """Run the command once more with --drain, after it has ended. `ended` waits for it."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._command, "--drain"], cwd=ROOT, env=self._environment, stdout=log, stderr=log
            )

    def renew(self) -> None:
        """Have the parent replace its children one by one, as for a deploy."""
        if self._process is not None:
            self._process.send_signal(signal.SIGHUP)

    def stop(self) -> None:
        """Ask the command to end, and do not start it again."""
        self._given_up = True
        if self._process is not None:
            self._process.terminate()

    def ended(self, timeout: float, after: str) -> None:
        """Wait for the end that `stop` or `drain` asked for. It must come in time and with exit code 0."""
        try:
            code: int | str = self._process.wait(timeout) if self._process is not None else 0
        except subprocess.TimeoutExpired:
            code = f"no exit code within {timeout:g} s"
        if code != 0:
            self.breaches.append(f"the worker on {self.host.name} ended with {code} after {after}")

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


def _children(pid: int) -> Iterator[int]:
    """Yield the children of a process, without multiprocessing's own helper."""
    for child in sorted(child for child, parent in _processes() if parent == pid):
        with suppress(OSError):  # it ended meanwhile
            if _HELPER not in Path(f"/proc/{child}/cmdline").read_text(errors="replace"):
                yield child


def _as_user(user: int) -> list[str]:
    """Return what makes a command run as this user, who may still read all files. Empty unless this is root."""
    if os.getuid() or shutil.which("setpriv") is None:
        return []
    capability = "+dac_read_search"
    return ["setpriv", f"--reuid={user}", "--clear-groups", f"--inh-caps={capability}", f"--ambient-caps={capability}"]
