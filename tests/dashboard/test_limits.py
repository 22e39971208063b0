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
from sqla_jobs.dashboard.access import Authorize
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


def create_app(authorize: Authorize = allow_everyone) -> Flask:
    app = Flask("tests.limited_shop")
    app.testing = True
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


@pytest.mark.slow
def test_a_failed_job_that_keeps_a_key_says_so_and_is_cancelled(visitor: Visitor, database: Engine) -> None:
    enqueue(database, shop.held, [{"account": 1, "fails": True}, {"account": 1}])
    with jobs.worker():
        wait_until(lambda: states(database) == {"failed": 1, "queued": 1})
    assert "Job 1 failed and keeps the key held of key 1 until it is retried or cancelled" in words(
        visitor.get("/jobs/2")
    )
    page = words(visitor.get("/jobs/1"))
    assert "It keeps the key held of key 1: sqla-jobs retry 1 runs it again" in page
    assert "Cancel this job" in page
    page = words(visitor.change("/jobs/1/cancel"))
    assert "Cancel this job" not in page


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
    with jobs.worker():
        wait_until(lambda: states(database, "rated") == {"succeeded": 1, "queued": 1})
    page = said_by(visitor.get("/limits"))
    told = f"Limit pair 0 at once code says 2 at once 0 of 0 0 3 {NOTHING} operator (now|\\d+ s ago) Edit the"
    assert re.search(told, page)
    assert re.search(r"Rate rated 1 in 3600 s code says 5 in 1 s 1 of 1 1 1 in 59 min operator", page)
    assert f"Limit stripe charge , refund 3 at once 0 of 3 0 0 {NOTHING} code Edit the limit stripe" in page
    assert f"Limit held of each key in order 1 at once, held by failures no key 0 0 {NOTHING} code" in page


def running(*gates: str, queue: str = "default", since: datetime | None = None) -> Any:
    """A job that runs behind these gates."""
    of_process = {"current_run_id": next(_numbers), "process_id": uuid4(), "started_at": since or datetime.now(UTC)}
    return jobs.Job(task="elsewhere", args={}, state="running", queue=queue, gates=list(gates) or None, **of_process)


_numbers = itertools.count(1)


def test_the_use_of_a_limit_is_a_bar_and_words(visitor: Visitor, session: Session) -> None:
    session.add_all([running("#stripe"), running("#stripe")])
    session.add_all([running(queue="mail") for _ in range(3)])
    jobs.set_limit(session, queue="mail", running=3)
    session.commit()
    page = visitor.get("/limits")
    assert "Limit stripe charge , refund 3 at once 2 of 3" in said_by(page)
    assert "Limit of queue mail 3 at once 3 of 3" in said_by(page)
    bars = re.findall(r'<span class="gauge([ \w]*)">.*?class="part" width="([\d.]+)"', page)
    assert bars.count(("", "66.7")) == 1
    assert bars.count((" full", "100")) == 1 or bars.count((" full", "100.0")) == 1


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


def test_the_last_hour_is_what_ended_behind_a_limit(visitor: Visitor, session: Session) -> None:
    job = jobs.Job(task="elsewhere", args={}, gates=["%rated", "#pair", "#keyed=17"], state="succeeded")
    session.add_all([job, running("#stripe")])
    session.flush()
    for hours in (0, 0.5, 2):
        ended: Any = func.now() - timedelta(hours=hours)
        session.add(jobs.Run(job_id=job.id, attempt=1, outcome="succeeded", finished_at=ended))
    session.commit()
    said = said_by(visitor.get("/limits"))
    assert "Rate rated 5 in 1 s 0 of 5 2 0 " in said
    assert "Limit pair 2 at once 0 of 2 2 0 " in said
    assert "Limit keyed of each key 1 at once no key 2 0 " in said
    assert "Limit stripe charge , refund 3 at once 1 of 3 0 0 " in said


def test_an_operator_edits_a_limit_and_clears_it(visitor: Visitor, session: Session) -> None:
    form = visitor.get("/limits/edit?gate=%23pair")
    assert "Edit the limit pair The code declares 2 at once. What you set here overrides that" in words(form)
    page = words(visitor.change("/limits/edit", {"gate": "#pair", "running": "7"}))
    assert "Limit pair 7 at once code says 2 at once" in page
    assert "Clearing it brings back what code says, 2 at once. Clear" in words(visitor.get("/limits/edit?gate=%23pair"))
    page = words(visitor.change("/limits/clear", {"gate": "#pair"}))
    assert f"Limit pair 2 at once 0 of 2 0 0 {NOTHING} code" in page
    visitor.change("/limits/edit", {"gate": "%rated", "rate": "3", "per": "2.5"})
    assert "Rate rated 3 in 2.5 s" in words(visitor.get("/limits"))
    assert audit(session) == [
        ("set", "limit pair", {"running": 7}),
        ("clear", "limit pair", {}),
        ("set", "rate rated", {"rate": 3, "per": "2.5"}),
    ]


def test_an_operator_sets_limits_of_keys_queues_and_tasks_without_one(visitor: Visitor, session: Session) -> None:
    page = words(visitor.change("/limits/new", {"which": "keyed", "key": "17", "running": "2"}))
    assert "Limit keyed of key 17 keyed" not in page  # the task is named once
    visitor.change("/limits/new", {"which": "plain", "running": "2", "rate": "9", "per": "1"})
    page = words(visitor.change("/limits/new", {"queue": "default", "running": "20"}))
    assert "Limit of queue default 20 at once" in page
    assert [line[:2] for line in audit(session)] == [
        ("set", "limit keyed of key 17"),
        ("set", "limit plain"),
        ("set", "rate plain"),
        ("set", "limit of queue default"),
    ]


REFUSED: list[tuple[str, dict[str, str], int, str]] = [
    ("new", {"which": "strippe", "running": "1"}, 400, "did you mean 'stripe'?"),
    ("new", {"running": "1"}, 400, "name a task or a limit, or else a queue"),
    ("new", {"which": "pair", "queue": "default", "running": "1"}, 400, "and not both"),
    ("new", {"which": "pair"}, 400, "say running= or rate= with per="),
    ("new", {"which": "pair", "running": "many"}, 400, "running must be a number, got 'many'"),
    ("new", {"which": "pair", "key": "1", "running": "1"}, 400, "no task declares this limit with key="),
    ("edit", {"gate": "#pair", "running": "-1"}, 400, "running must be"),
    ("edit", {"gate": "%rated", "rate": "1"}, 400, "rate= and per= go together"),
    ("edit", {"gate": "#pair", "rate": "1", "per": "1"}, 400, "rate= cannot be set"),
    ("edit", {"gate": "#nothing", "running": "1"}, 404, "There is no such limit in effect"),
    ("clear", {"gate": "\0"}, 404, "There is no such limit in effect"),
]


def test_what_cannot_be_set_is_refused_and_changes_nothing(
    visitor: Visitor, session: Session, subtests: pytest.Subtests
) -> None:
    before = words(visitor.get("/limits")).partition("Database time")[0]
    for path, fields, status, said in REFUSED:
        with subtests.test(path=path, fields=fields):
            refused = visitor.post(f"/limits/{path}", fields)
            assert refused.status_code == status
            assert said in words(refused.text)
            assert words(visitor.get("/limits")).partition("Database time")[0] == before
            assert audit(session) == []


def test_a_viewer_sees_limits_and_changes_none(visitor: Visitor, session: Session) -> None:
    viewer = Visitor(create_app(lambda: "viewer"))
    page = words(viewer.get("/limits"))
    assert "Limit pair 2 at once" in page
    assert "Edit" not in page
    for path, fields in (
        ("new", {"which": "pair", "running": "1"}),
        ("edit", {"gate": "#pair", "running": "1"}),
        ("clear", {"gate": "#pair"}),
    ):
        assert viewer.post(f"/limits/{path}", fields).status_code == 403
    assert audit(session) == []


def test_without_limits_the_page_says_how_to_get_one(database: Engine) -> None:
    page = words(Visitor(create_app()).get("/limits"))
    assert "Nothing is limited. Declare a limit in code, @jobs.task(limits=ConcurrencyLimit(3))" in page
