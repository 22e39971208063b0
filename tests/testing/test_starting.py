"""Assertions about startable jobs, without a worker."""

from __future__ import annotations

import pytest
from sqlalchemy.orm import Session

from sqla_jobs.testing import assert_starts, assert_waits, make_job, startable
from tests.testing.kit_shop import fetch, jobs

pytestmark = pytest.mark.filterwarnings("ignore:it goes in the next release")


def test_a_job_that_starts_and_one_that_waits_are_told_apart(kit_session: Session) -> None:
    one = make_job(kit_session, fetch, state="running", args={"account": 1})
    waits = fetch.enqueue(kit_session, account=1)
    starts = fetch.enqueue(kit_session, account=2)
    assert startable(kit_session, jobs) == [starts]
    assert_starts(kit_session, jobs, starts)
    assert_waits(kit_session, jobs, waits, because=str(one.id))
    with pytest.raises(AssertionError):
        assert_starts(kit_session, jobs, waits)
    with pytest.raises(AssertionError):
        assert_waits(kit_session, jobs, starts)
