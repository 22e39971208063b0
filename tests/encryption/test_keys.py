"""Key rings: where they come from, what is wrong with them, and processes that lack a key."""

from __future__ import annotations

import json
import subprocess
import sys
import traceback
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, func, text, update
from sqlalchemy.orm import Session

from sqla_jobs import ConfigurationError, DeclarationError, JobsError, JobState
from sqla_jobs.encryption import Encrypted
from sqla_jobs.errors import ArgumentsError
from sqla_jobs.monitoring.examine import examine
from sqla_jobs.tasks.key_ring import KeyRing
from sqla_jobs.testing import drain
from tests.encryption import shop
from tests.encryption.conftest import NEW, OLD, OTHER
from tests.encryption.shop import jobs
from tests.helpers import new_jobs, wait_until

SECRET = "sk_live_4f9a77c1d2"


def give(account: int, token: Encrypted[str] = "none") -> None:
    shop.seen.append(token)


def test_schedules_hold_no_secrets() -> None:
    task = new_jobs().task(give)
    with pytest.raises(JobsError):
        task.schedule("0 9 * * *", args={"account": 1, "token": SECRET})
    task.schedule("0 9 * * *", args={"account": 1})


@pytest.mark.parametrize("change", ["task", "parameter"])
def test_a_token_is_read_only_where_it_was_written(session: Session, change: str) -> None:
    application = new_jobs()

    @application.task(name="take", aliases=["took"], max_attempts=1)
    def take(token: Encrypted[str] = "", other: Encrypted[str] = "") -> None:
        shop.seen.append((token, other))

    application.task(name="steal", max_attempts=1)(take.__wrapped__)
    moved, alias = (take.enqueue(session, token=SECRET) for _ in range(2))
    session.flush()
    if change == "task":
        moved.task = "steal"
    else:
        moved.args = {"other": moved.args["token"]}
    session.commit()
    drain(session, application, errors="record", ahead=120)
    session.refresh(moved)
    assert moved.state == JobState.failed
    assert "where it was written" in str(moved.runs[-1].error)
    assert alias.state == JobState.succeeded
    assert shop.seen == [(SECRET, "")]


def test_a_renamed_task_reads_what_its_old_name_wrote(session: Session) -> None:
    old, new = new_jobs(), new_jobs()
    job = old.task(name="old")(give).enqueue(session, account=1, token=SECRET)
    session.commit()
    new.task(name="new", aliases=["old"])(give)
    drain(session, new)
    assert job.state == JobState.succeeded
    assert shop.seen == [SECRET]


def test_arguments_from_before_the_type_and_from_raw_sql_are_read(session: Session) -> None:
    args = json.dumps({"cards": [{"number": SECRET, "holder": "ada"}], "boxes": {"a": {"content": "aGk="}}})
    session.execute(text("INSERT INTO sqla_jobs (task, args) VALUES ('keep', CAST(:args AS jsonb))"), {"args": args})
    session.commit()
    drain(session, jobs)
    assert shop.seen == [([shop.Card(number=SECRET, holder="ada")], {"a": shop.Box(b"hi")})]


def sequence() -> Any:
    return [NEW, OLD]


@pytest.mark.parametrize(
    "keys",
    [sequence(), tuple(sequence()), sequence, [NEW.encode(), OLD.encode()]],
    ids=["list", "tuple", "function", "bytes"],
)
def test_keys_come_from_code_or_the_environment(keys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQLA_JOBS_KEYS", f" {OLD} ,")
    from_environment = KeyRing(None)
    ring = KeyRing(keys)
    assert ring.decrypt(from_environment.encrypt(b"text")) == b"text"
    with pytest.raises(JobsError, match="SQLA_JOBS_KEYS"):
        from_environment.decrypt(ring.encrypt(b"text"))
    monkeypatch.setenv("SQLA_JOBS_KEYS", f"{OLD},{NEW}")
    assert from_environment.decrypt(ring.encrypt(b"text")) == b"text"


def fails() -> Any:
    raise LookupError(f"no such secret: {NEW}")


MALFORMED = f"{NEW[:-2]}x"


@pytest.mark.parametrize(
    "keys",
    [[MALFORMED], lambda: [OLD, MALFORMED], lambda: NEW[:20], [], list, fails, lambda: None, lambda: 3, lambda: [7]],
    ids=range(9),
)
def test_a_faulty_ring_is_an_error_without_keys_in_any_frame(keys: Any) -> None:
    application = new_jobs()
    application._keys = KeyRing(keys)

    def use() -> None:
        application.task(give)
        application._keys.encrypt(b"text")

    with pytest.raises((ConfigurationError, DeclarationError)) as refused:
        use()
    raised: BaseException | None = refused.value
    while raised is not None:
        frames = [
            frame for frame, _ in traceback.walk_tb(raised.__traceback__) if "sqla_jobs" in frame.f_code.co_filename
        ]
        told = [str(raised), repr(raised), *(repr(frame.f_locals) for frame in frames if "tests" not in str(frame))]
        assert not any(key[:20] in one for key in (NEW, OLD) for one in told)
        raised = raised.__cause__ or raised.__context__


def test_a_missing_ring_is_told_at_the_enqueue(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SQLA_JOBS_KEYS")
    with pytest.raises(ConfigurationError, match="SQLA_JOBS_KEYS"):
        shop.pay.enqueue(session, account=1, token=SECRET)
    assert not session.new


def test_nothing_is_imported_for_plain_tasks_and_a_missing_extra_is_told() -> None:
    script = """
import sys
from sqlalchemy.orm import registry
from sqla_jobs import DeclarationError, Jobs
from sqla_jobs.encryption import Encrypted
jobs = Jobs(registry())
@jobs.task
def plain(token: str) -> None: ...
assert "cryptography" not in sys.modules
import importlib.machinery
importlib.machinery.PathFinder.find_spec = classmethod(lambda *_, **__: None)
try:
    @jobs.task
    def secret(token: Encrypted[str]) -> None: ...
except DeclarationError as error:
    assert "sqla-jobs[encryption]" in str(error)
else:
    raise AssertionError("it was not refused")
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def make_due(session: Session) -> None:
    session.execute(update(jobs.Job).where(jobs.Job.state == JobState.scheduled).values(run_at=func.now()))
    session.commit()


def test_a_worker_without_the_key_leaves_the_job_and_its_attempts(
    session: Session, database: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def is_passed_over() -> bool:
        with Session(database) as other:
            return any("encrypted" in reason for reason in jobs.why(other, job.id))

    job, plain = shop.pay.enqueue(session, account=1, token=SECRET), shop.plain.enqueue(session, token="plain")
    session.commit()
    for times, keys in enumerate((OTHER, "", OTHER, ""), 1):
        monkeypatch.setenv("SQLA_JOBS_KEYS", keys)
        make_due(session)
        with jobs.worker(heartbeat=0.1, clock=False):
            wait_until(is_passed_over)
        session.expire_all()
        assert (job.state, job.attempt) == (JobState.scheduled, 0)
        assert [run.outcome for run in job.runs] == ["snoozed"] * times
    assert job.run_at - job.runs[-1].finished_at > timedelta(seconds=30)
    assert any("a worker lacks the code or the key for 1 job" in str(finding) for finding in examine(session, jobs))
    assert plain.state == JobState.succeeded
    assert not any(key in caplog.text for key in (OLD, OTHER))
    monkeypatch.setenv("SQLA_JOBS_KEYS", f"{OTHER},{OLD}")
    make_due(session)
    with jobs.worker(clock=False):
        assert jobs.wait(job, timeout=30).attempt == 1


def test_a_worker_does_not_start_with_a_malformed_key(
    session: Session, database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQLA_JOBS_KEYS", f"{OLD},nonsense")
    with pytest.raises(ConfigurationError, match="SQLA_JOBS_KEYS"):
        jobs.worker().drain()
    without = new_jobs()
    without.task(name="plain")(shop.plain.__wrapped__)
    without.worker(bind=database).drain()


@pytest.mark.parametrize("what", ["step", "signal", "result"])
def test_what_lacks_its_key_costs_no_attempt(session: Session, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    if what == "signal":
        job = shop.confirm.enqueue(session)
        session.commit()
        drain(session, jobs)
        jobs.signal(session, job, "card", shop.Card(number=SECRET, holder="ada"))
    else:
        paid = shop.pay.enqueue(session, account=1, token=SECRET)
        job = paid if what == "step" else shop.report.options(after=paid).enqueue(session)
        session.commit()
        drain(session, jobs)
        session.refresh(job)
        jobs.retry(session, job)
    session.commit()
    before = job.attempt
    monkeypatch.setenv("SQLA_JOBS_KEYS", OTHER)
    jobs.worker().drain()
    session.expire_all()
    assert (job.state, job.runs[-1].error_type, job.attempt) == (JobState.scheduled, "Undecryptable", before)
    monkeypatch.setenv("SQLA_JOBS_KEYS", OLD)
    drain(session, jobs, ahead=100)
    assert job.state == JobState.succeeded


def test_keys_are_rotated_under_a_running_worker(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def job_of(token: str) -> Any:
        job = shop.fetch.enqueue(session, url=token)
        session.commit()
        return job

    before = job_of("before")
    with jobs.worker(clock=False):
        assert shop.fetch.result(before, timeout=30) == ["before"]
        for keys in (f"{OLD},{NEW}", f"{NEW},{OLD}"):
            monkeypatch.setenv("SQLA_JOBS_KEYS", keys)
            assert shop.fetch.result(job_of(keys[:5]), timeout=30) == [keys[:5]]
            assert shop.fetch.result(before, timeout=30) == ["before"]
        newest = job_of("newest")
        monkeypatch.setenv("SQLA_JOBS_KEYS", NEW)
        assert shop.fetch.result(newest, timeout=30) == ["newest"]


def test_a_result_that_does_not_fit_its_type_fails(session: Session) -> None:
    application = new_jobs()

    @application.task(name="lie", max_attempts=1)
    def lie() -> Encrypted[str]:
        return 17  # type: ignore[return-value]

    with pytest.raises(ArgumentsError):
        application.tasks["lie"].enqueue(session, other=1)
    job = lie.enqueue(session)
    session.commit()
    drain(session, application, errors="record")
    assert job.state == JobState.failed
