"""A child as its parent sees it, at the moment when it dies."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest

from sqla_jobs.runtime.logs import LogOptions
from sqla_jobs.supervisor.child import ChildProcess
from sqla_jobs.supervisor.messages import Heard
from sqla_jobs.supervisor.options import Application

APPLICATION = Application("tests.shop:jobs", LogOptions())


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """They take turns between any two operations."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.slow
@pytest.mark.usefixtures("hasty_threads")
def test_a_child_can_die_while_its_parent_tells_it_of_jobs() -> None:
    """The listener would hear no more, and the main thread would end."""
    raised: list[Exception] = []

    def tell(child: ChildProcess) -> None:
        try:
            while not child.pipe.closed:
                child.hint(Heard("default"))
        except Exception as error:  # noqa: BLE001
            raised.append(error)

    for number in range(1, 101):
        child = ChildProcess(APPLICATION, number)
        threads = [threading.Thread(target=tell, args=(child,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        child.process.kill()
        while not child.pipe.closed:
            assert list(child.messages()) == []
        for thread in threads:
            thread.join()
        child.process.wait()
    assert raised == []
