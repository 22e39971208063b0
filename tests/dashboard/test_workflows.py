"""The dashboard's pages of batches, and what the page of a job shows of its workflow."""

from __future__ import annotations

import re

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from sqla_jobs.testing import make_batch
from tests import dashboard_shop as shop
from tests.dashboard.test_dashboard import hidden
from tests.dashboard.visitor import Visitor, words
from tests.dashboard_shop import HOSTILE, jobs
from tests.helpers import states


def run_all(session: Session, database: Engine) -> None:
    session.commit()
    jobs.worker(bind=database).drain()


def graph(page: str) -> str:
    """The picture of the workflow."""
    found = re.search(r'<svg width="\d.*?</svg>', page, re.DOTALL)
    assert found
    return found[0]


def test_batches_are_listed_with_their_progress(visitor: Visitor, session: Session, database: Engine) -> None:
    make_batch(session, shop.add, name=HOSTILE, states={"succeeded": 3, "failed": 1, "queued": 4})
    jobs.batch(session)
    session.commit()
    page = visitor.get("/batches")
    assert HOSTILE not in page
    said = words(page)
    assert "batch 2 0 of 0 ended 100 % no jobs" in said
    assert "#1 4 of 8 ended 50 % 3 succeeded 1 failed 4 queued about" in said
    assert 'href="/ops/jobs?batch=1&amp;state=failed"' in page
    for _ in range(20):
        jobs.batch(session)
    session.commit()
    assert 'href="/ops/batches?below=3"' in visitor.get("/batches")
    assert 'href="/ops/batches/1"' in visitor.get("/batches?below=3")


def test_a_batch_shows_its_states_failed_jobs_and_what_waits(
    visitor: Visitor, session: Session, database: Engine
) -> None:
    batch = jobs.batch(session, name="import 17")
    bad = shop.fail.options(batch=batch).enqueue(session, message="no paper")
    shop.add.options(batch=batch).enqueue(session, a=1)
    report = shop.add.options(after=batch).enqueue(session, a=2)
    other = shop.add.options(batch=batch, delay=3600).enqueue(session, a=3)
    run_all(session, database)
    page = visitor.get(f"/batches/{batch.id}")
    said = words(page)
    for told in (f"import 17 #{batch.id} 2 of 3 ended 67 %", f"fail #{bad.id}", "no paper", f"add #{report.id}"):
        assert told in said
    for action in ("retry", "cancel"):
        assert f'name="action" value="{action}"' in page
        fields = {"action": action, "all": "1", "batch": batch.id}
        visitor.post("/jobs/change/run", hidden(visitor.post("/jobs/change", fields).text))
        assert states(session)[report.id] == "blocked"
    assert states(session)[other.id] == "cancelled"
    visitor.get("/batches/99", 404)


def test_jobs_are_filtered_by_batch_and_by_blocked(visitor: Visitor, session: Session) -> None:
    batch = jobs.batch(session)
    first = shop.add.options(batch=batch).enqueue(session, a=1)
    second = shop.add.options(batch=batch, after=first).enqueue(session, a=2)
    third = shop.add.options(after=second).enqueue(session, a=3)
    session.commit()
    assert "blocked 2 scheduled 0 queued 1" in words(visitor.get("/jobs"))
    for query, expected in (
        ("state=blocked", [second.id, third.id]),
        (f"batch={batch.id}", [second.id, first.id]),
        (f"batch={batch.id}&state=blocked", [second.id]),
        (f"batch={batch.id}&state=queued", [first.id]),
        ("batch=99", []),
    ):
        found = re.findall(r'<tr data-id="(\d+)">', visitor.get(f"/jobs?{query}"))
        assert [*map(int, found)] == expected, query
    visitor.get("/jobs?batch=x", 400)


def test_the_page_of_a_job_shows_what_is_before_and_after_it(
    visitor: Visitor, session: Session, database: Engine
) -> None:
    batch = jobs.batch(session, name="import 17")
    bad = shop.fail.options(batch=batch).enqueue(session, message="no paper")
    parts = [shop.add.options(batch=batch).enqueue(session, a=n) for n in range(25)]
    report = shop.add.options(after=[batch, *parts], if_failed="hold").enqueue(session, a=99)
    last = shop.add.options(after=report).enqueue(session, a=100)
    session.commit()
    page = visitor.get(f"/jobs/{report.id}")
    said = words(page)
    for told in (
        f"Runs after import 17 batch, 0 of 26 ended add #{parts[0].id} queued",
        "and more",
        f"Runs before add #{last.id} blocked",
        "Run without waiting",
    ):
        assert told in said
    picture = graph(page)
    assert picture.count('<g class="box') == 29
    assert f'href="/ops/batches/{batch.id}"' in picture
    run_all(session, database)
    assert f"It is held: job {bad.id}" in words(visitor.get(f"/jobs/{report.id}"))
    assert "26 of 26 ended" in words(visitor.get(f"/jobs/{bad.id}"))
    alone = shop.add.enqueue(session, a=2)
    session.commit()
    assert "Workflow" not in visitor.get(f"/jobs/{alone.id}")
