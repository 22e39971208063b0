"""Loops that try again after an error."""

from __future__ import annotations

import threading

import psycopg
import pytest
import tenacity

from sqla_jobs.runtime.retrying import RetryLoop

HOUR = tenacity.wait_fixed(3600)


class Away(psycopg.OperationalError):
    sqlstate = "57P03"


def test_once_one_loop_works_again_the_pauses_of_the_others_end() -> None:
    """Also the pause after a call that had begun before, such as one that waited for a frozen host."""
    stop, is_there, calls = threading.Event(), threading.Event(), list[str]()
    waiting, goes_on = threading.Event(), threading.Event()

    def ask() -> None:
        calls.append("asked")
        if not is_there.is_set():
            raise Away

    def ask_a_frozen_host() -> None:
        if not waiting.is_set():
            waiting.set()
            goes_on.wait(30)
            raise Away

    pausing, frozen, first = RetryLoop("a", stop), RetryLoop("b", stop), RetryLoop("c", stop)
    pausing._retrying.wait = frozen._retrying.wait = HOUR
    first._retrying.wait = tenacity.wait_none()
    threads = [
        threading.Thread(target=pausing.run, args=(ask,)),
        threading.Thread(target=frozen.run, args=(ask_a_frozen_host,)),
    ]
    for thread in threads:
        thread.start()
    assert waiting.wait(30)
    while pausing.trouble is None:
        assert calls
    is_there.set()
    errors = [Away()]

    def work_again() -> None:
        if errors:
            raise errors.pop()

    first.run(work_again)
    goes_on.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert calls == ["asked", "asked"]


@pytest.mark.parametrize("is_stopped_first", [True, False])
def test_a_pause_ends_when_the_loop_is_stopped(is_stopped_first: bool) -> None:
    stop = threading.Event()
    loop = RetryLoop("a", stop)
    loop._retrying.wait = HOUR
    failed = threading.Event()

    def fail() -> None:
        failed.set()
        raise Away

    if is_stopped_first:
        stop.set()
    thread = threading.Thread(target=loop.run, args=(fail,))
    thread.start()
    assert failed.wait(30)
    stop.set()
    thread.join(30)
    assert not thread.is_alive()
