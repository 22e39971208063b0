"""One mutant against some tests, in a process of its own that has imported everything before."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import helpers
from tests.mutants.planted import Place, plant

PATIENCE = 60.0
"""Seconds for one test. A mutant that makes it hang is killed by it."""
_BROKEN = b"broken"
_WAITS = 8.0
"""Seconds that a test waits for what a mutant keeps from happening."""


class Verdict(NamedTuple):
    """What became of a mutant."""

    killer: str | None
    """The first test that failed; `hangs` where the tests came to no end; None if the mutant survived."""
    seconds: float


def trial(place: Place | None, tests: Sequence[str], *, log: str, longest: float) -> Verdict:
    """Run the tests in this order until one fails. Without a place nothing is wrong."""
    began = time.monotonic()
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        os.close(reading)
        _run(place, tests, log, writing)
    os.close(writing)
    told = b""
    deadline = began + longest
    with os.fdopen(reading, "rb", buffering=0) as answer:
        while (left := deadline - time.monotonic()) > 0 and select.select([answer], [], [], left)[0]:
            if not (some := answer.read(4096)):
                break
            if not told:
                deadline = time.monotonic() + 10  # for its fixtures to end
            told += some
        else:
            told = told or b"hangs"
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if told.startswith(_BROKEN):
        raise SystemExit(
            f"the tests could not be run, see {log}; rm -r {Path(log).parent / 'record'} records them anew"
        )
    return Verdict(told.decode().splitlines()[0] if told else None, time.monotonic() - began)


def _run(place: Place | None, tests: Sequence[str], log: str, writing: int) -> None:
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    told = _BROKEN
    try:
        helpers.wait_until.__kwdefaults__["timeout"] = _WAITS  # type: ignore[index]
        if place is not None:
            plant(place)
        options = ["-x", "-q", "-p", "no:cacheprovider", f"--timeout={PATIENCE:.0f}", "--tb=short", "--assert=plain"]
        status = pytest.main([*options, *tests], plugins=[_Telling(writing)])
        told = b"" if status in (0, 1) else _BROKEN
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        with suppress(OSError):
            os.write(writing, told)
        os._exit(0)


class _Telling:
    """Tells of the first failure at once."""

    def __init__(self, to: int) -> None:
        self._to = to

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            os.write(self._to, f"{report.nodeid}\n".encode())
