"""A worker whose account may start no more threads for a while, as RLIMIT_NPROC or a cgroup has it."""

from __future__ import annotations

import sys

import pytest

from tests.conftest import ROOT
from tests.helpers import run_to_end

PROGRAM = """
import logging, os, pwd, resource, sys, threading
from contextlib import contextmanager
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session
from tests import shop
from tests.counting import states
from tests.helpers import wait_until

url, threads = sys.argv[1], int(sys.argv[2])
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(levelname)s %(message)s")
engine = create_engine(url)
shop.jobs.bind(engine)


@contextmanager
def shortage():
    if os.geteuid() == 0:  # nothing limits root
        nobody = pwd.getpwnam("nobody").pw_uid
        os.setresuid(nobody, nobody, 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    resource.setrlimit(resource.RLIMIT_NPROC, (1, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NPROC, (soft, hard))


def claims():
    with engine.connect() as connection:
        return connection.scalar(text("SELECT last_value FROM sqla_runs_id_seq"))


def enqueue(number, seconds=0.0):
    with Session(engine) as session:
        shop.mark.enqueue_many(session, ({"n": n, "seconds": seconds} for n in range(number)))
        session.commit()


def slots():
    return [one.name for one in threading.enumerate() if one.name.startswith("sqla_jobs-default-")]


with shop.jobs.worker({"default": 4}, clock=False):
    enqueue(threads)
    wait_until(lambda: states(engine) == {"succeeded": threads} if threads else True)
    with shortage():
        enqueue(4)
        if threads:
            wait_until(lambda: states(engine) == {"succeeded": threads + 4})
        else:
            wait_until(lambda: claims() >= 8 and states(engine) == {"queued": 4})
            print("given back twice")
    wait_until(lambda: states(engine) == {"succeeded": threads + 4})
    enqueue(12, 0.5)
    wait_until(lambda: len(slots()) == 4)
    wait_until(lambda: states(engine) == {"succeeded": threads + 16})
print("ended")
"""


@pytest.mark.slow
@pytest.mark.parametrize("threads", [0, 1])
def test_jobs_for_which_no_thread_can_be_started_lose_neither_their_place_nor_their_slots(
    database_url: str, database: object, threads: int
) -> None:
    """Jobs run in the threads that there are. Where there is none, other workers may take the jobs meanwhile."""
    ended = run_to_end([sys.executable, "-c", PROGRAM, database_url, str(threads)], ROOT)
    lines = ended.stdout.splitlines()
    assert (ended.returncode, lines[-1]) == (0, "ended"), ended.stdout + ended.stderr
    warnings = [line for line in lines if line.startswith("WARNING queue default")]
    assert len(warnings) == 1
    assert f"only {threads} threads" in warnings[0]
    assert "claiming works again" not in ended.stdout


TIMEOUTS = (
    PROGRAM[: PROGRAM.index("def claims")]
    + """
import time
from sqla_jobs import RunContext

rested = threading.Event()


@shop.jobs.task(timeout=1.0, max_attempts=1)
def calls_a_server(run: RunContext) -> None:
    end = threading.Event()
    with run.cancelling(end.set):
        end.wait()


@shop.jobs.task(timeout=1.0, max_attempts=1)
def rests() -> None:
    try:
        for _ in range(3000):
            time.sleep(0.01)
    finally:
        rested.set()


with shop.jobs.worker({"default": 2}, clock=False):
    with Session(engine) as session:
        calls_a_server.enqueue(session)
        rests.enqueue(session)
        session.commit()
    wait_until(lambda: states(engine) == {"running": 2})
    with shortage():
        assert rested.wait(10)
    wait_until(lambda: states(engine) == {"failed": 2}, timeout=10)
print("ended")
"""
)


@pytest.mark.slow
def test_a_block_for_whose_call_no_thread_can_be_started_delays_no_timeout_but_its_own(
    database_url: str, database: object
) -> None:
    ended = run_to_end([sys.executable, "-c", TIMEOUTS, database_url, "0"], ROOT)
    assert (ended.returncode, ended.stdout.splitlines()[-1]) == (0, "ended"), ended.stdout + ended.stderr
    assert "watching the running jobs failed" not in ended.stdout
