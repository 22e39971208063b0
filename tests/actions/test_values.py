"""Values that the database cannot store or look up: the methods of Jobs refuse them and name them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from sqla_jobs import PARKED, ArgumentsError
from tests import shop
from tests.shop import jobs

_TOO_BIG = 2**63


CALLS: dict[str, Callable[[Session, int], object]] = {
    "cancel": jobs.cancel,
    "retry": jobs.retry,
    "signal": lambda session, job: jobs.signal(session, job, "approved"),
    "why": jobs.why,
    "wait": lambda _, job: jobs.wait(job, timeout=5),
    "follow": lambda _, job: [*jobs.follow(job, timeout=5)],
}


def test_a_number_that_no_job_can_have_is_refused(session: Session) -> None:
    for call in CALLS.values():
        for job in (_TOO_BIG, -_TOO_BIG - 1, True):
            with pytest.raises(ArgumentsError, match=f"{job} is not an id"):
                call(session, job)
            assert session.scalar(select(1)) == 1


def test_a_job_after_others_cannot_be_parked(session: Session) -> None:
    first = shop.mark.enqueue(session, n=1)
    with pytest.raises(ArgumentsError, match="after= and run_at=PARKED exclude each other"):
        shop.mark.options(after=first, run_at=PARKED).enqueue(session, n=2)
