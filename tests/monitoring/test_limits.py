"""Warnings of `doctor` and the dashboard about limits that hold up jobs for good."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from sqla_jobs import Jobs
from sqla_jobs.cli.main import main
from sqla_jobs.monitoring.status import read_status
from tests import limited_shop as shop
from tests.counting import states
from tests.helpers import wait_until
from tests.limited_shop import jobs
from tests.limits.attempts import enqueue


@pytest.fixture
def application() -> Jobs[Any]:
    return jobs


@pytest.fixture
def declared(database: Engine) -> Engine:
    """A database in which a worker has stored the declared limits."""
    with jobs.worker(clock=False):
        pass
    return database


def doctor() -> dict[str, tuple[str, str]]:
    done = CliRunner().invoke(main, ["doctor", "--json", "--app", "tests.limited_shop:jobs"])
    found = json.loads(done.stdout)
    return {one["about"]: (one["found"], one["remedy"]) for one in found if one["verdict"] == "warning"}


def test_a_limit_that_has_let_nothing_start_for_a_day_is_reported(declared: Engine, session: Session) -> None:
    jobs.set_limit(session, shop.keyed, key="a b", running=0)
    jobs.set_limit(session, shop.keyed, key="of no job", running=0)
    jobs.set_limit(session, queue="default", running=0)
    jobs.set_limit(session, shop.rated, rate=0, per=1)
    session.commit()
    enqueue(declared, shop.keyed, [{"account": 1}, {"account": 2}])
    session.execute(text("""UPDATE sqla_jobs SET gates = ARRAY['#keyed="a b"'] WHERE id = 2"""))
    session.commit()
    assert not any("let nothing start" in found for found, _ in doctor().values())
    long_ago = "UPDATE sqla_limits SET changed_at = changed_at - interval '25 h' WHERE running = 0 OR rate = 0"
    session.execute(text(long_ago))
    session.execute(text("UPDATE sqla_limits SET set_at = NULL WHERE gate = '%rated'"))
    session.commit()
    found = doctor()
    assert "limit of key of no job" not in found
    for about, waiting, remedy in (
        ('limit keyed of key "a b"', "1 job ", "limit clear keyed --key '\"a b\"'"),
        ("limit of queue default", "2 jobs ", "limit clear --queue default"),
        ("rate rated", "0 jobs ", "limit clear rated"),
    ):
        assert "for 1 d 1 h" in found[about][0]
        assert waiting in found[about][0]
        assert found[about][1].endswith(remedy)
    assert {"rate rated", "limit of queue default"} <= {one.about for one in read_status(session, jobs).warnings}


def test_a_failed_job_that_keeps_a_key_is_reported_while_others_wait(declared: Engine, session: Session) -> None:
    enqueue(declared, shop.held, [{"account": 1, "fails": True}, {"account": 2, "fails": True}, {"account": 1}])
    with jobs.worker(clock=False):
        wait_until(lambda: states(declared) == {"failed": 2, "queued": 1})
    found = doctor()
    failed = min(int(about.split()[1]) for about in found if about.startswith("job "))
    assert "keeps the key held of key 1, and 1 job is waiting" in found[f"job {failed}"][0]
    assert "job 2" not in found  # nothing waits behind it
    jobs.cancel(session, failed)
    session.commit()
    assert not any("keeps the key" in found for found, _ in doctor().values())
