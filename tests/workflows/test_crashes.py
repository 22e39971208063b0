"""Graphs whose workers and server are killed: each job runs once, its effects are there once, and nothing is stuck."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from sqla_jobs import JobMixin, Jobs
from sqla_jobs.postgres import LocalServer
from tests import graph_shop, shop
from tests.conftest import ROOT, StartWorker
from tests.counting import engine_on, states, tried
from tests.graph_shop import Effect, jobs, write
from tests.helpers import wait_until
from tests.workflows.resolving import state

pytestmark = pytest.mark.slow


@pytest.fixture
def application(request: pytest.FixtureRequest) -> Jobs[Any]:
    return shop.jobs if "graph" in request.fixturenames else jobs


@pytest.fixture
def start(start_worker: StartWorker) -> Callable[..., subprocess.Popen[bytes]]:
    def start(url: str, *options: str) -> subprocess.Popen[bytes]:
        return start_worker(url, "--concurrency", "4", *options, application="tests.graph_shop:jobs")

    return start


Start = Callable[..., subprocess.Popen[bytes]]


def runs(engine: Engine) -> Counter[int]:
    """How often each job ran to its end."""
    with Session(engine) as session:
        return Counter(session.scalars(select(jobs.Run.job_id).where(jobs.Run.outcome == "succeeded")))


def effects(engine: Engine) -> Counter[int]:
    with Session(engine) as session:
        return Counter(session.scalars(select(Effect.n)))


def all_succeed(engine: Engine, number: int, *, timeout: float = 60.0) -> None:
    wait_until(lambda: states(engine)["succeeded"] == number, timeout=timeout, message=f"the jobs are {states(engine)}")
    assert states(engine) == {"succeeded": number}
    assert set(runs(engine).values()) == {1}
    with Session(engine) as session:
        before, after = select(jobs.Job).subquery("before").c, select(jobs.Job).subquery("after").c
        edge = jobs._models.tables["edges"].c
        early = select(func.count()).where(
            edge.job_id == after.id, edge.needs_id == before.id, after.started_at < before.finished_at
        )
        assert session.scalar(early) == 0, "a job started before one that it is after had ended"


def layers(session: Session, depth: int, width: int, *, seconds: float) -> int:
    """A diamond of diamonds. Returns the number of jobs, whose numbers begin at 0."""
    number = 0

    def job(after: Sequence[JobMixin]) -> JobMixin:
        nonlocal number
        options = write.options(after=after) if after else write
        number += 1
        return options.enqueue(session, n=number - 1, seconds=seconds)

    corners = [job([])]
    for _ in range(depth):
        sides = [job(corners) for _ in range(width)]
        inner = [[job([side]) for _ in range(2)] for side in sides]
        corners = [job([*pair, side]) for pair, side in zip(inner, sides, strict=True)]
        corners = [job(corners)]
    return number


def test_a_crash_of_the_server_in_the_middle_of_a_graph(start: Start) -> None:
    """It undoes resolves, whose commits do not wait for the disk."""
    with LocalServer(durable=True) as server, engine_on(server.url) as engine:
        graph_shop.Base.metadata.create_all(engine)
        with Session(engine) as session:
            number = layers(session, 4, 8, seconds=0.01)
            session.commit()
        for _ in range(2):
            start(server.url)
        wait_until(lambda: states(engine)["succeeded"] > number // 3, timeout=60)
        server.crash()
        server.start()
        wait_until(lambda: tried(lambda: states(engine) == {"succeeded": number}), timeout=60)
        all_succeed(engine, number)
        assert effects(engine) == dict.fromkeys(range(number), 1)


# --- at each statement


def dying(url: str, name: str, statement: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.workflows.dying", url, name, str(statement)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def graph(session: Session) -> list[tuple[int, str]]:
    """Three jobs that are queued, and what those after them are to come to in the end."""
    first, second = shop.mark.enqueue(session, n=1), shop.mark.enqueue(session, n=2)
    bad = shop.flaky.enqueue(session, good_from=99)
    session.flush()
    both = shop.write.options(after=[first, second]).enqueue(session, n=3)
    after = shop.write.options(after=both).enqueue(session, n=4)
    never = shop.write.options(after=[first, bad]).enqueue(session, n=5)
    nor = shop.write.options(after=never).enqueue(session, n=6)
    anyway = shop.write.options(after=[bad, nor], if_failed="run").enqueue(session, n=7)
    session.commit()
    ended = {"succeeded": (both, after, anyway), "cancelled": (never, nor)}
    return [(job.id, state) for state, its in ended.items() for job in its]


def ends_as_it_should(engine: Engine, graph: list[tuple[int, str]]) -> None:
    wait_until(
        lambda: all(state(engine, job_id) == expected for job_id, expected in graph),
        message="not all came to what they should",
    )
    with Session(engine) as session:
        done = select(shop.Effect.n).where(shop.Effect.kind == "transactional")
        assert sorted(session.scalars(done)) == [3, 4, 7]


@pytest.mark.parametrize("statement", [2, 3, 4, 6, 7])
def test_a_worker_killed_at_any_statement_of_a_resolve_leaves_the_rest_to_others(
    statement: int, database: Engine, database_url: str, graph: list[tuple[int, str]]
) -> None:
    """Within a transaction, before its commit, and between two of them: the third statement is the first commit."""
    process = dying(database_url, "SIGKILL", statement)
    assert process.communicate(timeout=60)[0] == "now\n"
    with shop.jobs.worker(bind=database, concurrency=4):
        ends_as_it_should(database, graph)


def test_a_worker_suspended_in_the_middle_of_a_resolve_holds_up_its_graph_for_its_patience(
    database: Engine, database_url: str, session: Session, graph: list[tuple[int, str]]
) -> None:
    """The server ends its transaction after 2 s. Other graphs go on meanwhile."""
    process = dying(database_url, "SIGSTOP", 3)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "now\n"
        with shop.jobs.worker(bind=database, concurrency=4):
            other = shop.mark.options(after=shop.mark.enqueue(session, n=10)).enqueue(session, n=11)
            session.commit()
            wait_until(lambda: state(database, other.id) == "succeeded", timeout=10)
            ends_as_it_should(database, graph)
    finally:
        process.send_signal(signal.SIGCONT)
        process.communicate(timeout=60)
    assert process.returncode != 0, "its transaction was ended"
