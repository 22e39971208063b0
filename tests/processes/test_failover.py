"""A worker at work while its primary dies and a standby is promoted; and reading from a standby."""

from __future__ import annotations

import signal
from collections.abc import Generator
from contextlib import contextmanager
from copy import copy

import pytest
from click.testing import CliRunner
from prometheus_client import CollectorRegistry, generate_latest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session
from werkzeug.test import Client

from sqla_jobs.cli.main import main
from sqla_jobs.dashboard import allow_everyone, create_wsgi
from sqla_jobs.prometheus import collector
from tests import shop
from tests.conftest import StartWorker
from tests.counting import effects, engine_on, states, tried
from tests.helpers import wait_until
from tests.processes.standby import Pair, replicated

pytestmark = pytest.mark.slow
JOBS = 300


@contextmanager
def at_work(pair: Pair, start_worker: StartWorker) -> Generator[Engine]:
    """Yield an engine for the primary while two processes run transactional jobs. At the end, the worker stops well."""
    with engine_on(pair.url) as engine:
        shop.Base.metadata.create_all(engine)
        with Session(engine) as session:
            shop.write.enqueue_many(session, ({"n": n, "seconds": 0.01} for n in range(JOBS)))
            session.commit()
        worker = start_worker(pair.url, "--concurrency", "4", "--processes", "2")
        wait_until(lambda: states(engine)["succeeded"] > 50)
        yield engine
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(20) == 0


def rows(engine: Engine) -> set[tuple[int, int]]:
    """Return the effects with their ids: one that was lost and is done again has another id."""
    with Session(engine) as session:
        return {(effect_id, n) for effect_id, n in session.execute(select(shop.Effect.id, shop.Effect.n))}


@pytest.mark.promise("Database effects happen exactly once")
def test_a_synchronous_standby_takes_over_without_a_loss(start_worker: StartWorker) -> None:
    with replicated(synchronous=True) as pair, at_work(pair, start_worker) as engine:
        with Session(engine) as session:
            shop.write.enqueue(session, n=JOBS)
            session.commit()
        committed = rows(engine)
        pair.fail_over()
        wait_until(lambda: tried(lambda: states(engine) == {"succeeded": JOBS + 1}), timeout=60)
        assert committed <= rows(engine)
        assert effects(engine, "transactional") == dict.fromkeys(range(JOBS + 1), 1)


@pytest.mark.promise("Database effects happen exactly once")
def test_what_an_asynchronous_standby_has_not_received_is_done_again_once(start_worker: StartWorker) -> None:
    """The workers' leases, and ids from sequences, are those of transactions that the new primary never saw."""
    with replicated() as pair, at_work(pair, start_worker) as engine:
        pair.disconnect()
        before = states(engine)["succeeded"]
        wait_until(lambda: states(engine)["succeeded"] > before + 50)
        pair.fail_over()
        wait_until(lambda: tried(lambda: states(engine) == {"succeeded": JOBS}), timeout=60)
        assert effects(engine, "transactional") == dict.fromkeys(range(JOBS), 1)


def test_pages_and_commands_read_from_a_standby() -> None:
    jobs = copy(shop.jobs)
    with (
        replicated(synchronous=True) as pair,
        engine_on(pair.primary.url) as engine,
        engine_on(pair.standby.url) as replica,
    ):
        shop.Base.metadata.create_all(engine)
        with Session(engine) as session:
            job = shop.write.enqueue(session, n=1)
            session.commit()
            job_id = job.id
        jobs.bind(engine, read_bind=replica)
        client = Client(create_wsgi(jobs, authorize=allow_everyone))
        wait_until(lambda: client.get("/").status_code == 200)  # a standby has what was committed, and replays it later
        assert "standby" in client.get("/").text
        assert client.post(f"/jobs/{job_id}/cancel", headers={"Sec-Fetch-Site": "same-origin"}).status_code == 303
        wait_until(lambda: ">cancelled<" in client.get(f"/jobs/{job_id}").text)
        assert [update.state for update in jobs.follow(job_id)] == ["cancelled"]
        registry = CollectorRegistry()
        registry.register(collector(jobs))
        assert "sqla_jobs_database_up 1.0" in generate_latest(registry).decode()
        for words in (["status"], ["list"], ["show", str(job_id)], ["doctor", "--all"], ["limit", "list"], ["audit"]):
            done = CliRunner().invoke(main, [*words, "--app", "tests.shop:jobs", "--database-url", pair.standby.url])
            assert done.exit_code == 0, done.output
        done = CliRunner().invoke(main, ["pause", "tests.shop:jobs", "default", "--database-url", pair.standby.url])
        assert (done.exit_code, "read-only" in done.output) == (1, True)
