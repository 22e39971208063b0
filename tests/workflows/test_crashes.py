"""Graphs whose worker is killed or stopped at each statement of a resolve: what is left to others goes on."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from tests import shop
from tests.conftest import ROOT
from tests.helpers import wait_until
from tests.workflows.resolving import state

pytestmark = pytest.mark.slow


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
    with shop.jobs.worker(bind=database, concurrency=4, clock=False):
        ends_as_it_should(database, graph)


def test_a_worker_suspended_in_the_middle_of_a_resolve_holds_up_its_graph_for_its_patience(
    database: Engine, database_url: str, session: Session, graph: list[tuple[int, str]]
) -> None:
    """The server ends its transaction after 2 s. Other graphs go on meanwhile."""
    process = dying(database_url, "SIGSTOP", 3)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "now\n"
        with shop.jobs.worker(bind=database, concurrency=4, clock=False):
            other = shop.mark.options(after=shop.mark.enqueue(session, n=10)).enqueue(session, n=11)
            session.commit()
            wait_until(lambda: state(database, other.id) == "succeeded", timeout=10)
            ends_as_it_should(database, graph)
    finally:
        process.send_signal(signal.SIGCONT)
        process.communicate(timeout=60)
    assert process.returncode != 0, "its transaction was ended"
