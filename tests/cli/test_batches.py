"""`--batch` and `enqueue --after`, as an operator uses them."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from sqla_jobs.cli.main import main
from sqla_jobs.models.workflow_columns import BatchMixin
from tests import shop
from tests.helpers import states
from tests.shop import jobs


def run(*arguments: str, code: int = 0, answer: str = "") -> Result:
    result = CliRunner().invoke(main, [*arguments, "--app", "tests.shop:jobs"], input=answer)
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def batch(session: Session, database: Engine) -> BatchMixin:
    """A batch with a job that failed, one that was cancelled because of it, one that waits, and one that is done."""
    batch = jobs.batch(session, name="import 17")
    bad = shop.flaky.options(batch=batch, max_attempts=1).enqueue(session, good_from=2)
    shop.mark.options(batch=batch, after=bad).enqueue(session, n=1)
    shop.mark.options(batch=batch, delay=3600).enqueue(session, n=2)
    shop.mark.options(batch=batch).enqueue(session, n=3)
    shop.mark.enqueue(session, n=4)
    session.commit()
    jobs.worker(bind=database).drain()
    return batch


def test_a_batch_is_retried_and_cancelled(batch: BatchMixin, session: Session) -> None:
    run("retry", "--batch", "1", answer="n\n", code=1)
    assert run("retry", "--batch", "1", "--yes").stdout == "retry: 1 job\n"
    assert states(session) == {1: "queued", 2: "blocked", 3: "scheduled", 4: "succeeded", 5: "succeeded"}
    assert run("cancel", "--batch", "1", answer="y\n").output.endswith("cancel: 3 jobs\n")
    assert [*states(session).values()].count("cancelled") == 3
    lines = session.execute(select(jobs.Audit.action, jobs.Audit.details["changed"].as_integer()))
    assert {*map(tuple, lines)} == {("retry many", 1), ("cancel many", 3)}
    run("cancel", "--batch", "7", code=1)


def test_a_filter_takes_a_batch(batch: BatchMixin, session: Session) -> None:
    run("retry", "--batch", "1", "--yes")
    listed = json.loads(run("list", "--batch", "1", "--state", "blocked", "--json").stdout)
    assert [one["id"] for one in listed] == [2]
    assert len(json.loads(run("list", "--batch", "1", "--json").stdout)) == 4
    assert run("delete", "--batch", "1", "--state", "succeeded", "--yes").stdout == "delete: 1 job\n"
    run("list", "--batch", "9", code=1)
    run("cancel", "--batch", "9", "--yes", code=1)
