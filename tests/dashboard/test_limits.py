"""The dashboard's page of limits, and what the page of a job says of them."""

from __future__ import annotations

import re
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from sqla_jobs import Jobs
from sqla_jobs.dashboard import allow_everyone, create_blueprint
from sqla_jobs.dashboard.access import Authorize
from tests import limited_shop as shop
from tests.dashboard.visitor import Visitor, words
from tests.helpers import wait_until
from tests.limited_shop import jobs
from tests.limits.attempts import enqueue, states


@pytest.fixture
def application() -> Jobs[Any]:
    return jobs


def create_app(authorize: Authorize = allow_everyone) -> Flask:
    app = Flask("tests.limited_shop")
    app.config.update(SECRET_KEY="a key for tests", TESTING=True)
    app.register_blueprint(create_blueprint(jobs, authorize=authorize, actor=lambda: "ada"), url_prefix="/ops")
    return app


@pytest.fixture
def visitor(database: Engine) -> Visitor:
    """Of a database in which a worker has stored what code declares."""
    with jobs.worker():
        pass
    return Visitor(create_app())


def audit(session: Session) -> list[tuple[str, str, dict[str, Any]]]:
    session.rollback()
    lines = session.scalars(select(jobs.Audit).order_by(jobs.Audit.id))
    return [(line.action, line.subject, line.details) for line in lines]


def test_the_page_of_a_job_says_why_it_waits(visitor: Visitor, database: Engine, session: Session) -> None:
    enqueue(database, shop.pair, [{"n": 1}])
    jobs.set_limit(session, shop.pair, running=0)
    session.commit()
    page = visitor.get("/jobs/1")
    assert "start one with <code>--queues default</code>." in page
    assert re.search(
        r"The limit pair lets nothing start: an operator set it to 0 at 20.* UTC; sqla-jobs limit", words(page)
    )


def test_a_failed_job_that_keeps_a_key_says_so_and_is_cancelled(visitor: Visitor, database: Engine) -> None:
    enqueue(database, shop.held, [{"account": 1, "fails": True}, {"account": 1}])
    with jobs.worker(poll=0.1):
        wait_until(lambda: states(database) == {"failed": 1, "queued": 1})
    assert "Job 1 failed and keeps the key held of key 1 until somebody decides" in words(visitor.get("/jobs/2"))
    page = words(visitor.get("/jobs/1"))
    assert "It keeps the key held of key 1: sqla-jobs retry 1 runs it again" in page
    assert "Cancel this job" in page
    page = words(visitor.change("/jobs/1/cancel"))
    assert "Cancel this job" not in page
