"""The shop's tests: a request and its job are one application, with one transaction each."""

# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from pyramid.threadlocal import get_current_request
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session
from webtest import TestApp

from examples.pyramid_shop import Base, Note, Order, create_app, jobs, note
from sqla_jobs import RunContext
from sqla_jobs.testing.databases import Databases

told: list[str] = []


class Mail:
    """Takes part in a transaction beside the database."""

    transaction_manager: Any

    def __init__(self, manager: Any) -> None:
        self.transaction_manager = manager
        manager.get().join(self)

    def tpc_begin(self, _: object) -> None: ...
    def commit(self, _: object) -> None: ...
    def tpc_vote(self, _: object) -> None: ...
    def tpc_finish(self, _: object) -> None:
        told.append("sent")

    def abort(self, _: object) -> None:
        told.append("aborted")

    tpc_abort = abort

    def sortKey(self) -> str:
        return "mail"


@jobs.task(max_attempts=1)
def send(session: Session, run: RunContext, order: Order, fail: bool) -> None:
    """In two parts: after the first one, the run continues in another transaction of its request."""
    request = get_current_request()
    assert request.dbsession is session
    run.step("note", note, "in a step")
    Mail(request.tm)
    order.status = "sent"
    if fail:
        raise ValueError("the shop is closed")


@pytest.fixture
def url(sqla_jobs_databases: Databases) -> Iterator[str]:
    with sqla_jobs_databases.new(Base.metadata) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[TestApp]:
    app = create_app(url)
    yield TestApp(app)
    app.registry["engine"].dispose()


def engine_of(client: TestApp) -> Engine:
    app: Any = client.app
    engine: Engine = app.registry["engine"]
    return engine


def stored(client: TestApp) -> tuple[list[str], list[str]]:
    with Session(engine_of(client)) as session:
        statuses = list(session.scalars(select(Order.status).order_by(Order.id)))
        return statuses, list(session.scalars(select(Note.text).order_by(Note.id)))


def test_an_order_is_settled_with_what_a_helper_writes_in_the_request_of_the_run(client: TestApp) -> None:
    with pytest.raises(RuntimeError):
        client.post("/orders?fail=1")
    number = client.post("/orders").json["order"]
    assert jobs.worker().drain() == 1
    assert stored(client) == (["settled"], [f"settled: https://shop.example/orders/{number}"])


@pytest.mark.parametrize("fail", [False, True])
def test_other_members_of_the_transaction_finish_with_the_run_or_abort_with_it(client: TestApp, fail: bool) -> None:
    told.clear()
    with Session(engine_of(client)) as session:
        session.add(order := Order())
        send.enqueue(session, order=order, fail=fail)
        session.commit()
    assert jobs.worker().drain() == 1
    assert (stored(client), told) == (((["new"] if fail else ["sent"]), ["in a step"]), ["aborted" if fail else "sent"])
    with Session(engine_of(client)) as session:
        assert session.scalars(select(jobs.Job.state)).one() == ("failed" if fail else "succeeded")


def test_the_example_works_by_the_command_of_its_page(client: TestApp, url: str) -> None:
    client.post("/orders")
    command = [sys.executable, "-m", "sqla_jobs.worker", "examples.pyramid_shop.worker:jobs", "--drain"]
    subprocess.run(command, env={**os.environ, "DATABASE_URL": url}, check=True)
    assert stored(client)[0] == ["settled"]
