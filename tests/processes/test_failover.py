"""A worker at work while its primary dies and a standby is promoted; and reading from a standby."""

from __future__ import annotations

import signal

import pytest
from sqlalchemy import create_engine, func, select
from sqlalchemy.orm import Session

from tests import shop
from tests.conftest import StartWorker
from tests.counting import effects, engine_on, states, tried
from tests.helpers import wait_until
from tests.processes.standby import replicated

pytestmark = pytest.mark.slow
JOBS = 300


@pytest.mark.promise("Database effects happen exactly once")
def test_a_synchronous_standby_takes_over_without_a_loss(start_worker: StartWorker) -> None:
    with replicated(synchronous=True) as pair, engine_on(pair.url) as engine:
        shop.Base.metadata.create_all(engine)
        with Session(engine) as session:
            shop.write.enqueue_many(session, ({"n": n, "seconds": 0.01} for n in range(JOBS)))
            session.commit()
        worker = start_worker(pair.url, "--concurrency", "4", "--processes", "2")
        wait_until(lambda: states(engine)["succeeded"] > 50)
        with Session(engine) as session:
            shop.write.enqueue(session, n=JOBS)
            session.commit()
        committed = effects(engine, "transactional")
        pair.fail_over()
        wait_until(lambda: tried(lambda: committed.keys() <= effects(engine, "transactional").keys()))
        wait_until(lambda: tried(lambda: states(engine) == {"succeeded": JOBS + 1}), timeout=60)
        assert effects(engine, "transactional") == dict.fromkeys(range(JOBS + 1), 1)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(20) == 0


@pytest.mark.promise("Database effects happen exactly once")
def test_what_an_asynchronous_standby_has_not_received_is_done_again_once(start_worker: StartWorker) -> None:
    """The workers' leases, and ids from sequences, are those of transactions that the new primary never saw."""
    with replicated() as pair, engine_on(pair.url) as engine:
        shop.Base.metadata.create_all(engine)
        with Session(engine) as session:
            shop.write.enqueue_many(session, ({"n": n, "seconds": 0.01} for n in range(JOBS)))
            session.commit()
        worker = start_worker(pair.url, "--concurrency", "4", "--processes", "2")
        wait_until(lambda: states(engine)["succeeded"] > 50)
        pair.disconnect()
        before = states(engine)["succeeded"]
        wait_until(lambda: states(engine)["succeeded"] > before + 50)
        pair.fail_over()
        wait_until(lambda: tried(lambda: states(engine) == {"succeeded": JOBS}), timeout=60)
        assert effects(engine, "transactional") == dict.fromkeys(range(JOBS), 1)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(20) == 0
