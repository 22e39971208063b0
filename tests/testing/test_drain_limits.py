"""`drain` with `limits=True`, which obeys limits."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from sqla_jobs import Jobs
from sqla_jobs.testing import drain
from tests import limited_shop as shop
from tests.limited_shop import jobs


@pytest.fixture
def application() -> Jobs[Any]:
    return jobs


def test_limits_are_obeyed_and_jobs_behind_them_are_named(session: Session) -> None:
    jobs.set_limit(session, shop.rated, rate=5, per=3600)
    shop.rated.enqueue_many(session, ({"n": n} for n in range(8)))
    shop.plain.enqueue_many(session, ({"n": n} for n in range(3)))
    drained = drain(session, jobs, limits=True)
    assert drained.runs == 5 + 3
    rated = select(jobs.Job.id).where(jobs.Job.task == "rated").order_by(jobs.Job.id)
    assert drained.waiting == session.scalars(rated).all()[5:]
    assert drain(session, jobs).runs == 3


@pytest.mark.parametrize("limit", [{"which": "plain"}, {"queue": "default"}])
def test_an_operators_limit_is_obeyed(session: Session, limit: dict[str, Any]) -> None:
    which = [limit.pop("which")] if "which" in limit else []
    jobs.set_limit(session, *which, **limit, running=0)
    shop.plain.enqueue(session, n=1)
    assert len(drain(session, jobs, limits=True).waiting) == 1
    jobs.set_limit(session, *which, **limit, running=1)
    shop.plain.enqueue(session, n=2)
    assert drain(session, jobs, limits=True).runs == 2


def test_an_ordered_key_keeps_its_order(session: Session) -> None:
    for n in range(4):
        shop.ordered.enqueue(session, account=1, n=n, failures=int(n == 1))
    drained = drain(session, jobs, limits=True, errors="record")
    assert drained.runs == 2
    assert len(drained.waiting) == 2
    assert drain(session, jobs, limits=True, ahead=3600).runs == 3
    assert session.scalars(text("SELECT result FROM sqla_runs WHERE outcome = 'succeeded' ORDER BY id")).all() == [
        *range(4)
    ]
