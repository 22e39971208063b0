"""Two versions of an application's code at once, as in a deploy, with limits that differ."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import DeclarativeBase, Session

from sqla_jobs import ConcurrencyLimit, Jobs
from tests.counting import states
from tests.helpers import wait_until
from tests.limits.attempts import left, most_at_once
from tests.limits.claims import Claims

pytestmark = pytest.mark.slow


def version(database: Engine, *limits: Any, **options: Any) -> Jobs[Any]:
    """One with the task `send` and these limits."""

    class Base(DeclarativeBase):
        pass

    jobs = Jobs(Base)

    @jobs.task(name="send", limits=limits, **options)
    def send(n: int, seconds: float = 0.0) -> None:
        time.sleep(seconds)

    jobs.bind(database)
    return jobs


def enqueue(database: Engine, jobs: Jobs[Any], numbers: Sequence[int], seconds: float = 0.0) -> None:
    with Session(database) as session:
        jobs.tasks["send"].enqueue_many(session, ({"n": n, "seconds": seconds} for n in numbers))
        session.commit()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([], [ConcurrencyLimit(2)]),
        ([ConcurrencyLimit(2)], []),
        ([ConcurrencyLimit(2)], [ConcurrencyLimit(2, name="renamed")]),
        ([ConcurrencyLimit(1, key="n", ordered=True)], [ConcurrencyLimit(1, key="n", ordered=True, name="renamed")]),
    ],
)
def test_both_run_everything_and_do_not_take_it_from_each_other_for_ever(
    database: Engine, before: list[Any], after: list[Any]
) -> None:
    old, new = version(database, *before), version(database, *after)
    numbers = [n % 3 for n in range(30)]
    with ExitStack() as workers:
        for jobs in (old, new):
            workers.enter_context(jobs.worker({"default": 2}, clock=False))
            enqueue(database, jobs, numbers)
        wait_until(lambda: left(database) == 0)
    with database.connect() as connection:
        leases = connection.scalar(text("SELECT last_value FROM sqla_runs_id_seq"))
    assert leases < 60 * 6, "each is claimed until the version that gave it its gates has it, or both agree"


def test_what_waits_since_a_version_with_limits_runs_in_one_without(database: Engine) -> None:
    """Nothing else shows that there is anything behind gates: fairness has no row of limits."""
    enqueue(database, version(database, fair_by="n"), range(5))
    with version(database).worker({"default": 2}, clock=False):
        wait_until(lambda: states(database) == {"succeeded": 5})


@pytest.mark.parametrize(("was_stored", "how"), [(True, "commit"), (False, "rollback")])
def test_a_worker_starts_beside_somebody_who_has_set_a_limit_and_has_not_committed(
    database: Engine, was_stored: bool, how: str
) -> None:
    """Until the declared limit can be stored, the stored one applies. If there is none, no job of the task starts."""
    jobs = version(database, ConcurrencyLimit(2))
    if was_stored:
        Claims(database, version(database, ConcurrencyLimit(1)))

    @jobs.task
    def plain() -> None: ...

    with Session(database) as operator:
        jobs.set_limit(operator, "send", running=3)
        operator.flush()
        enqueue(database, jobs, range(8), seconds=0.1)
        with jobs.worker({"default": 8}, clock=False) as worker, Session(database) as session:
            wait_until(lambda: left(database) == (0 if was_stored else 8))
            plain.enqueue(session)
            session.commit()
            wait_until(lambda: worker.runs == (9 if was_stored else 1))
            if was_stored:
                assert most_at_once(database, "send") == {None: 1}
            getattr(operator, how)()
            wait_until(lambda: left(database) == 0)
            enqueue(database, jobs, range(12), seconds=0.3)
            wait_until(lambda: left(database) == 0)
    with Session(database) as session:
        limit = session.get_one(jobs.Limit, "#send")
        assert (limit.declared or {})["running"] == 2
        assert limit.running == (3 if how == "commit" else 2)
    assert most_at_once(database, "send") == {None: limit.running}
