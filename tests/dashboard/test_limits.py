"""The dashboard's page of limits, and what the page of a job says of them."""

from __future__ import annotations

import itertools
import re
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from flask import Flask
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from sqla_jobs import Jobs
from sqla_jobs.dashboard import allow_everyone, create_blueprint
from sqla_jobs.rules.redaction import HIDDEN
from sqla_jobs.rules.wording import NOTHING
from tests import limited_shop as shop
from tests.counting import states
from tests.dashboard.visitor import Visitor, words
from tests.helpers import wait_until
from tests.limited_shop import jobs
from tests.limits.attempts import enqueue


@pytest.fixture
def application() -> Jobs[Any]:
    return jobs


@pytest.fixture
def visitor(database: Engine) -> Visitor:
    """Of a database in which a worker has stored what code declares."""
    with jobs.worker(clock=False):
        pass
    app = Flask("tests.limited_shop")
    blueprint = create_blueprint(jobs, authorize=allow_everyone, actor=lambda: "ada")
    app.register_blueprint(blueprint, url_prefix="/ops")
    return Visitor(app)


def audit(session: Session) -> list[tuple[str, str, dict[str, Any]]]:
    session.rollback()
    lines = session.scalars(select(jobs.Audit).order_by(jobs.Audit.id))
    return [(line.action, line.subject, line.details) for line in lines]


def said_by(page: str) -> str:
    """What the page says beside its pictures."""
    return words(re.sub("<svg.*?</svg>", "", page))


def test_the_page_shows_what_is_used_what_waits_and_who_says_so(
    visitor: Visitor, database: Engine, session: Session
) -> None:
    enqueue(database, shop.pair, ({"n": n} for n in range(3)))
    jobs.set_limit(session, shop.pair, running=0)
    jobs.set_limit(session, shop.rated, rate=1, per=3600)
    session.commit()
    enqueue(database, shop.rated, ({"n": n} for n in range(2)))
    with jobs.worker(clock=False):
        wait_until(lambda: states(database, "rated") == {"succeeded": 1, "queued": 1})
    page = said_by(visitor.get("/limits"))
    told = f"Limit pair 0 at once code says 2 at once 0 of 0 3 {NOTHING} operator (now|\\d+ s ago) Edit the"
    assert re.search(told, page)
    assert re.search(r"Rate rated 1 in 3600 s code says 5 in 1 s 1 of 1 1 in 59 min operator", page)
    assert f"Limit stripe charge , refund 3 at once 0 of 3 0 {NOTHING} code Edit the limit stripe" in page
    assert f"Limit held of each key in order 1 at once, held by failures no key 0 {NOTHING} code" in page


def running(*gates: str, queue: str = "default", since: datetime | None = None) -> Any:
    """A job that runs behind these gates."""
    of_process = {"current_run_id": next(_numbers), "process_id": uuid4(), "started_at": since or datetime.now(UTC)}
    return jobs.Job(task="elsewhere", args={}, state="running", queue=queue, gates=list(gates) or None, **of_process)


_numbers = itertools.count(1)


def test_keys_are_shown_by_their_values_and_hidden_ones_by_their_hash(visitor: Visitor, session: Session) -> None:
    hashed = f"sha256:{'0a' * 20}"
    tasks, declared = ["elsewhere"], {"running": 2, "rate": None, "per": None, "hashed_by": ["elsewhere"]}
    session.add(jobs.Limit(gate="#secret=", running=2, tasks=tasks, declared=declared))
    session.add_all([running(f"#secret={hashed}"), running(f"#secret={hashed}"), running('#secret="a password"')])
    session.add_all(running(f"#keyed={account}") for account in (17, 17, *range(100, 106)))
    session.add(running('#refund=["acme",1]'))
    jobs.set_limit(session, shop.roomy, key=3, running=9)
    session.add_all([running("#roomy=3"), running("#roomy=4")])
    now = session.scalars(select(func.clock_timestamp())).one()
    long_ago = now - timedelta(hours=2)
    session.add(jobs.Start(gate="%paced=8", started_at=now, total=4, count=4))
    session.add(jobs.Start(gate="%paced=9", started_at=long_ago, total=5, count=5))
    jobs.set_limit(session, shop.paced, rate=5, per=3600)
    session.commit()
    page = visitor.get("/limits")
    assert "a password" not in page
    said = said_by(page)
    assert f"{hashed} 2 of 2 {HIDDEN} 1 of 2" in said
    assert re.search(r"Limit keyed of each key 1 at once 17 2 of 1 100 1 of 1 .* and 2 other keys", said)
    assert '["acme",1] 1 of 1' in said
    assert re.search("Limit roomy of each key 5 at once 4 1 of 5", said)
    assert re.search("Limit roomy of key 3 9 at once 1 of 9", said)
    assert re.search("Rate paced of each key 5 in 3600 s code says 5 in 1 s 8 4 of 5", said)


def test_an_operator_edits_a_limit_and_clears_it(visitor: Visitor, session: Session) -> None:
    page = words(visitor.change("/limits/set", {"gate": "#pair", "running": "7"}))
    assert "Limit pair 7 at once code says 2 at once" in page
    assert "Clear" in words(visitor.get("/limits/set?gate=%23pair"))
    page = words(visitor.change("/limits/clear", {"gate": "#pair"}))
    assert f"Limit pair 2 at once 0 of 2 0 {NOTHING} code" in page
    visitor.change("/limits/set", {"gate": "%rated", "rate": "3", "per": "2.5"})
    visitor.change("/limits/set", {"which": "keyed", "key": "17", "running": "2"})
    page = words(visitor.change("/limits/set", {"queue": "default", "running": "20"}))
    assert "Rate rated 3 in 2.5 s" in page
    assert "Limit of queue default 20 at once" in page
    assert audit(session) == [
        ("set", "limit pair", {"running": 7}),
        ("clear", "limit pair", {}),
        ("set", "rate rated", {"rate": 3, "per": "2.5"}),
        ("set", "limit keyed of key 17", {"running": 2}),
        ("set", "limit of queue default", {"running": 20}),
    ]
