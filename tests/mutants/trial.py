"""Mutants against tests, each in a child of one process that has collected the tests before.

A child needs no second for pytest, imports and tables: databases of all children are copies of the same templates.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

import psycopg
import pytest
from sqlalchemy import MetaData, make_url

from sqla_jobs.testing.databases import Databases
from tests import helpers

_WAITS = 5.0
"""Seconds that a test waits for what a mutant keeps from happening."""


class Verdict(NamedTuple):
    """What became of a mutant."""

    killer: str | None
    """The first test that failed; `hangs` where the tests came to no end; None if the mutant survived."""
    seconds: float


def with_tests(tests: Iterable[str], url: str, log: str, main: Callable[[Trials], None]) -> None:
    """Collect these tests, by their ids, and call `main` with the means to run some of them on the server at `url`."""
    trials = Trials(url, log, main)
    files = sorted({test.partition("::")[0] for test in tests})
    options = ["-q", "-s", "-p", "no:cacheprovider", "-p", "no:xdist", "--assert=plain", "--no-summary"]
    pytest.main([*options, *files], plugins=[trials])
    if not trials.has_ended:
        raise SystemExit("the tests could not be collected")


class Trials:
    """Runs tests in children of the process that has collected them."""

    has_ended = False

    def __init__(self, url: str, log: str, main: Callable[[Trials], None]) -> None:
        self._log = log
        self._main = main
        server = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
        self._server = psycopg.connect(server, autocommit=True)
        self._items: dict[str, pytest.Item] = {}
        self._templates: dict[MetaData, str] = {}
        self._declared: dict[int, MetaData] = {}
        self._telling = -1

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """In place of a run of all tests."""
        self._items = {item.nodeid: item for item in session.items}
        gc.unfreeze()
        self._declared = {id(one): one for one in gc.get_objects() if type(one) is MetaData}
        gc.freeze()
        self._main(self)
        self.has_ended = True
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Tell of the first failure at once."""
        if report.failed:
            print(report.nodeid, report.longreprtext, sep="\n")
            self._tell(f"failed {report.nodeid}")

    def run(self, plant: Callable[[], None], tests: Sequence[str], *, patience: float, longest: float) -> Verdict:
        """Have `plant` plant the mutant, and run the tests in this order until one fails.

        A test that takes longer than `patience` seconds fails. One that is gone since the recording is passed over.
        """
        began = time.monotonic()
        tests = [test for test in tests if test in self._items]
        sys.stdout.flush()
        reading, self._telling = os.pipe()
        if (child := os.fork()) == 0:
            os.close(reading)
            self._run(plant, tests, patience)
        os.close(self._telling)
        killer = self._hear(reading, began + longest)
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        self._clean()
        if killer == "broken":
            raise SystemExit(f"the tests could not be run, see {self._log}")
        return Verdict(killer, time.monotonic() - began)

    def _hear(self, reading: int, deadline: float) -> str | None:
        killer = None
        heard = b""
        with os.fdopen(reading, "rb", buffering=0) as answer:
            while (left := deadline - time.monotonic()) > 0 and select.select([answer], [], [], left)[0]:
                if not (some := answer.read(4096)):
                    return killer
                *lines, heard = (heard + some).split(b"\n")
                for word, *of_it in (line.decode().split(" ", 1) for line in lines):
                    if word == "template":
                        number, name = of_it[0].split()
                        self._templates[self._declared[int(number)]] = name
                    elif killer is None:
                        killer = of_it[0] if of_it else word
                        deadline = min(deadline, time.monotonic() + 10)  # for its fixtures to end
        return killer or "hangs"

    def _run(self, plant: Callable[[], None], tests: Sequence[str], patience: float) -> None:
        try:
            os.setsid()
            output = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            helpers.wait_until.__kwdefaults__["timeout"] = _WAITS  # type: ignore[index]
            self._share_templates()
            plant()
            items = [self._items[test] for test in tests]
            for item, following in zip(items, [*items[1:], None], strict=False):
                item.add_marker(pytest.mark.timeout(patience), append=False)
                failed = item.session.testsfailed
                item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
                if item.session.testsfailed > failed:
                    break
        except BaseException:  # noqa: BLE001 - the child ends here
            traceback.print_exc()
            self._tell("broken")
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)

    def _share_templates(self) -> None:
        """Have databases copied from templates of earlier children, and the parent told of a new one."""
        own = Databases._template

        def template(databases: Databases, metadata: MetaData) -> str:
            if (name := self._templates.get(metadata)) is None:
                name = own(databases, metadata)
                if id(metadata) in self._declared:
                    del databases._templates[metadata]  # it is not dropped in the end
                    self._tell(f"template {id(metadata)} {name}")
            return name

        Databases._template = template  # type: ignore[method-assign,assignment]

    def _tell(self, line: str) -> None:
        with suppress(OSError):
            os.write(self._telling, f"{line}\n".encode())

    def _clean(self) -> None:
        """Drop what a trial that was ended has left, so that the next one does not fail for it."""
        kept = {*self._templates.values()}
        for name in self._names("SELECT datname FROM pg_database WHERE datname LIKE 'sqla\\_jobs\\_test\\_%'") - kept:
            self._server.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())
        for name in self._names("SELECT rolname FROM pg_roles WHERE oid >= 16384 AND NOT rolsuper"):
            self._server.execute(f'DROP ROLE "{name}"'.encode())

    def _names(self, query: str) -> set[str]:
        return {name for (name,) in self._server.execute(query.encode()).fetchall()}
