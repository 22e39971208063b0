"""`sqla-jobs rotate-keys`."""

from __future__ import annotations

from typing import Any

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session

from sqla_jobs import JobState
from sqla_jobs.actions import rotation
from sqla_jobs.cli.main import main
from sqla_jobs.testing import drain
from tests.encryption import shop
from tests.encryption.conftest import NEW, OLD, OTHER
from tests.encryption.shop import jobs
from tests.helpers import wait_until

SECRET = "sk_live_4f9a77c1d2"


def rotate(*options: str) -> Result:
    return CliRunner().invoke(main, ["rotate-keys", "tests.encryption.shop:jobs", *options])


@pytest.fixture
def filled(session: Session) -> dict[str, Any]:
    """Jobs with encrypted arguments, progress, results, errors, steps and signals, under the old key."""
    made = {
        "paid": shop.pay.enqueue(session, account=1, token=SECRET),
        "refused": shop.refuse.options(max_attempts=1).enqueue(session, account=1, token=SECRET),
        "waiting": shop.confirm.enqueue(session),
    }
    session.commit()
    drain(session, jobs, errors="record")
    made["later"] = shop.pay.options(delay=3600).enqueue(session, account=2, token=SECRET)
    jobs.signal(session, made["waiting"], "code", SECRET)
    session.commit()
    return made


def tokens(session: Session) -> list[str]:
    session.commit()
    tables = [table.name for table in shop.Base.metadata.sorted_tables]
    rows = [row for name in tables for row in session.scalars(text(f"SELECT t::text FROM {name} t"))]
    return [part for row in rows for part in row.split('"') if part.startswith("gAAAA")]


def test_all_is_under_the_first_key_then(
    session: Session, filled: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tokens(session)
    monkeypatch.setenv("SQLA_JOBS_KEYS", f"{NEW},{OLD}")
    done = rotate()
    assert done.exit_code == 0, done.output
    after = tokens(session)
    assert len(after) == len(before)
    assert not {*after} & {*before}
    done = rotate()
    assert done.exit_code == 0, done.output
    assert tokens(session) == after  # what is under the first key already is not written again
    assert done.stdout.splitlines()[-1].startswith("all ")
    monkeypatch.setenv("SQLA_JOBS_KEYS", NEW)
    session.expire_all()
    assert jobs.decrypted(filled["paid"].result) == {"receipt": f"charged {SECRET}"}
    assert jobs.decrypted(filled["paid"].progress_message) == "charging account 1"
    assert "Traceback" in jobs.decrypted(filled["refused"].runs[0].traceback)
    drain(session, jobs, ahead=4000)
    assert jobs.decrypted(filled["waiting"].result) == SECRET
    assert shop.seen[-1] == (2, SECRET)
    with Session(session.get_bind()) as other:
        assert {row.action for row in other.scalars(select(jobs.Audit))} >= {"rotate keys"}


def test_it_goes_on_where_it_was_interrupted(
    session: Session, filled: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        shop.plain.enqueue_many(session, [{"token": "plain"}] * 7)
        shop.pay.enqueue_many(session, [{"account": number, "token": SECRET}] * 5)
    before = {*tokens(session)}
    monkeypatch.setenv("SQLA_JOBS_KEYS", f"{NEW},{OLD}")
    monkeypatch.setattr(rotation, "_BATCH", 3)
    steps = rotation.rotate("jobs", jobs._models, jobs._binding().transaction, jobs._keys)
    for _ in range(8):
        next(steps)
    steps.close()
    middle = {*tokens(session)}
    assert 0 < len(middle - before) < len(before)
    assert rotate().exit_code == 0
    after = {*tokens(session)}
    assert middle - before <= after
    assert not after & before


def test_what_cannot_be_read_is_counted_and_kept(
    session: Session, filled: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {*tokens(session)}
    monkeypatch.setenv("SQLA_JOBS_KEYS", OTHER)
    shop.pay.enqueue(session, account=3, token=SECRET)
    session.commit()
    lost = {*tokens(session)} - before
    monkeypatch.setenv("SQLA_JOBS_KEYS", f"{NEW},{OLD}")
    done = rotate()
    assert done.exit_code == 1
    assert "1 row " in done.output
    assert "all " not in done.stdout
    assert {*tokens(session)} & (before | lost) == lost
    monkeypatch.setenv("SQLA_JOBS_KEYS", f"{NEW},{OTHER}")
    assert rotate().exit_code == 0


def test_running_jobs_keep_their_lease_and_are_told(
    session: Session, database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = shop.hold.enqueue(session, token=SECRET)
    session.commit()
    with jobs.worker(heartbeat=0.1):
        assert shop.begun.wait(30)
        monkeypatch.setenv("SQLA_JOBS_KEYS", f"{NEW},{OLD}")
        done = rotate()
        assert done.exit_code == 1
        assert jobs.decrypted(job.args) == {"token": SECRET}
        shop.gate.set()
        assert shop.hold.result(job, timeout=30) == SECRET
    session.expire_all()
    assert (job.attempt, len(job.runs)) == (1, 1)
    assert rotate().exit_code == 0
    monkeypatch.setenv("SQLA_JOBS_KEYS", NEW)
    session.expire_all()
    assert jobs.decrypted(job.args) == {"token": SECRET}


def test_a_locked_job_is_not_waited_for(session: Session, database: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    job = shop.pay.options(delay=60).enqueue(session, account=1, token=SECRET)
    session.commit()
    monkeypatch.setenv("SQLA_JOBS_KEYS", f"{NEW},{OLD}")
    with Session(database) as other:
        other.get_one(jobs.Job, job.id, with_for_update=True)
        assert rotate().exit_code == 1
    assert rotate().exit_code == 0


def test_workers_run_all_jobs_during_a_rotation(
    session: Session, database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotation, "_BATCH", 5)
    shop.pay.enqueue_many(session, [{"account": number, "token": SECRET} for number in range(300)])
    session.commit()
    monkeypatch.setenv("SQLA_JOBS_KEYS", f"{NEW},{OLD}")

    def left() -> int:
        with Session(database) as own:
            return own.query(jobs.Job).where(jobs.Job.state != JobState.succeeded).count()

    with jobs.worker({"default": 4}, heartbeat=0.2):
        while left():
            rotate()
    wait_until(lambda: rotate().exit_code == 0)
    assert sorted(account for account, _ in shop.seen) == [*range(300)]
    assert {token for _, token in shop.seen} == {SECRET}


def test_without_keys_it_says_so(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SQLA_JOBS_KEYS")
    done = rotate()
    assert done.exit_code == 1
    assert "SQLA_JOBS_KEYS" in done.output
