"""Key rings: where they come from, what is wrong with them, and processes that lack a key."""

from __future__ import annotations

import logging
import subprocess
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, func, update
from sqlalchemy.orm import Session, registry

from sqla_jobs import (
    ConcurrencyLimit,
    ConfigurationError,
    DeclarationError,
    Jobs,
    JobsError,
    JobState,
    RunContext,
    Undecryptable,
    Unique,
)
from sqla_jobs.errors import ArgumentsError
from sqla_jobs.monitoring.examine import examine
from sqla_jobs.tasks.encryption import KeyRing
from sqla_jobs.testing import drain
from tests.encryption import shop
from tests.encryption.conftest import NEW, OLD, OTHER
from tests.encryption.shop import jobs
from tests.helpers import new_jobs, wait_until

SECRET = "sk_live_4f9a77c1d2"


def give(account: int, token: str = "none") -> None:
    shop.seen.append(token)


@pytest.mark.parametrize(
    "option",
    [
        {"encrypted": ["token"], "unique": Unique(key="token")},
        {"encrypted": ["token"], "unique": Unique(key=["account", "token"])},
        {"encrypted": ["token"], "unique": Unique()},
        {"encrypted": True, "unique": Unique(key=lambda args: args["account"])},
        {"encrypted": ["token"], "limits": ConcurrencyLimit(1, key="token")},
        {"encrypted": True, "limits": [ConcurrencyLimit(1, key=lambda args: args["account"])]},
        {"encrypted": ["token"], "fair_by": "token"},
        {"encrypted": ["other"]},
        {"encrypted": "token"},
        {"encrypted": 3},
    ],
    ids=range(10),
)
def test_what_cannot_be_encrypted_is_refused_when_declared(option: dict[str, Any]) -> None:
    with pytest.raises(DeclarationError) as refused:
        new_jobs().task(**option)(give)
    assert "give" in str(refused.value) or "encrypted" in str(refused.value)


def test_a_unique_of_the_call_is_checked_as_that_of_the_task(session: Session) -> None:
    with pytest.raises(DeclarationError):
        shop.pay.options(unique=Unique(key="token"))
    shop.pay.options(unique=Unique(key="account")).enqueue(session, account=1, token=SECRET)


def test_functions_that_make_keys_do_not_get_encrypted_arguments(session: Session, database: Engine) -> None:
    application, given = new_jobs(), list[dict[str, Any]]()

    def key(args: Any) -> Any:
        given.append(dict(args))
        return args["account"]

    task = application.task(encrypted=["token"], unique=Unique(key=key), limits=ConcurrencyLimit(1, key=key))(give)
    one, other = (task.enqueue(session, account=1, token=SECRET) for _ in range(2))
    assert one is other
    assert given
    assert all(args == {"account": 1} for args in given)


def test_schedules_hold_no_encrypted_arguments(session: Session) -> None:
    from sqla_jobs.actions.audit import Changing
    from sqla_jobs.actions.schedules import FIELDS, add

    application = new_jobs()
    task = application.task(encrypted=["token"])(give)
    with pytest.raises(JobsError):
        task.schedule("0 9 * * *", args={"account": 1, "token": SECRET})
    task.schedule("0 9 * * *", args={"account": 1})
    everything = application.task(name="everything", encrypted=True)(give)
    with pytest.raises(JobsError):
        everything.schedule("0 9 * * *", args={"account": 1})
    row = dict.fromkeys(FIELDS) | {"task": "give", "cron": "0 9 * * *", "timezone": "UTC", "queue": "default"}
    row |= {"priority": 0, "catch_up": "latest", "overlap": "allow", "jitter": 0.0}
    changing = Changing(session, application._models, application.tasks)
    with pytest.raises(ArgumentsError):
        add(changing, "by hand", row | {"args": {"account": 1, "token": SECRET}})
    add(changing, "by hand", row | {"args": {"account": 1}})


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
    token = from_environment.encrypt(b"text")
    ring = KeyRing(keys)
    assert ring.decrypt(token) == b"text"
    assert not ring.is_newest(token)
    with pytest.raises(Undecryptable):
        from_environment.decrypt(ring.encrypt(b"text"))
    monkeypatch.setenv("SQLA_JOBS_KEYS", f"{OLD},{NEW}")
    assert from_environment.decrypt(ring.encrypt(b"text")) == b"text"


def test_a_function_is_asked_each_time() -> None:
    keys = [OLD]
    ring = KeyRing(lambda: keys)
    token = ring.encrypt(b"text")
    keys.insert(0, NEW)
    assert ring.decrypt(token) == b"text"
    assert not ring.is_newest(token)


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
        application.task(encrypted=["token"])(give)
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


@pytest.mark.parametrize("keys", [NEW, NEW.encode(), 3], ids=["str", "bytes", "int"])
def test_what_is_no_list_of_keys_is_refused_at_once(keys: Any) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Jobs(registry(), encryption_keys=keys)
    assert "sk" not in str(refused.value)
    assert NEW not in str(refused.value)


def test_a_missing_ring_is_told_at_the_enqueue(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SQLA_JOBS_KEYS")
    with pytest.raises(ConfigurationError, match="SQLA_JOBS_KEYS"):
        shop.pay.enqueue(session, account=1, token=SECRET)
    assert not session.new


@pytest.mark.parametrize("keys", [OTHER, "nonsense", ""])
def test_who_cannot_decrypt_is_asked_for_the_old_key_and_not_to_make_one(
    session: Session, monkeypatch: pytest.MonkeyPatch, keys: str
) -> None:
    job = shop.settle.enqueue(session, account=1, secrets={})
    session.commit()
    drain(session, jobs)
    session.commit()
    monkeypatch.setenv("SQLA_JOBS_KEYS", keys)
    with pytest.raises(Undecryptable, match="SQLA_JOBS_KEYS") as refused:
        jobs.decrypted(job.result)
    assert "generate_key" not in str(refused.value)
    with pytest.raises(Undecryptable, match=f"job {job.id} "):
        shop.settle.result(job, timeout=30)


def test_nothing_is_imported_for_plain_tasks_and_a_missing_extra_is_told() -> None:
    script = """
import sys
from sqlalchemy.orm import registry
from sqla_jobs import DeclarationError, Jobs
jobs = Jobs(registry())
@jobs.task
def plain(token: str) -> None: ...
assert "cryptography" not in sys.modules
sys.path_hooks[:], sys.modules["cryptography"] = [], None
sys.modules.pop("cryptography")
import importlib.util
importlib.util.find_spec.__globals__["_find_spec"] = lambda *_: None
try:
    @jobs.task(encrypted=["token"])
    def secret(token: str) -> None: ...
except DeclarationError as error:
    assert "sqla-jobs[encryption]" in str(error)
else:
    raise AssertionError("it was not refused")
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def make_due(session: Session) -> None:
    session.execute(update(jobs.Job).where(jobs.Job.state == JobState.scheduled).values(run_at=func.now()))
    session.commit()


def _passed_over(engine: Engine, job: Any, application: Jobs[Any]) -> Callable[[], bool]:
    def told() -> bool:
        with Session(engine) as session:
            return any("encrypted" in reason for reason in application.why(session, job.id))

    return told


def test_a_worker_without_the_key_leaves_the_job_and_its_attempts(
    session: Session, database: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = shop.pay.enqueue(session, account=1, token=SECRET)
    plain = shop.plain.enqueue(session, token="plain")
    session.commit()
    for keys in (OTHER, ""):
        monkeypatch.setenv("SQLA_JOBS_KEYS", keys)
        make_due(session)
        with jobs.worker(heartbeat=0.1):
            wait_until(_passed_over(database, job, jobs))
        session.expire_all()
        assert (job.state, job.attempt) == (JobState.scheduled, 0)
    assert plain.state == JobState.succeeded
    assert not any(key in caplog.text for key in (OLD, OTHER))
    monkeypatch.setenv("SQLA_JOBS_KEYS", f"{OTHER},{OLD}")
    make_due(session)
    with jobs.worker():
        assert jobs.wait(job, timeout=30).attempt == 1


def test_a_worker_does_not_start_with_a_malformed_key(
    session: Session, database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for keys in ("nonsense", f"{OLD},nonsense"):
        monkeypatch.setenv("SQLA_JOBS_KEYS", keys)
        with pytest.raises(ConfigurationError, match="SQLA_JOBS_KEYS"):
            jobs.worker().drain()
    without = new_jobs()
    without.task(name="plain")(shop.plain.__wrapped__)
    without.worker(bind=database).drain()


def test_a_job_without_its_key_waits_for_ever(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    job = shop.pay.enqueue(session, account=1, token=SECRET)
    session.commit()
    monkeypatch.setenv("SQLA_JOBS_KEYS", OTHER)
    for times in range(1, 5):
        make_due(session)
        jobs.worker().drain()
        session.expire_all()
        assert (job.state, job.attempt) == (JobState.scheduled, 0)
        assert [run.outcome for run in job.runs] == ["snoozed"] * times
    assert any("a worker lacks the code or the key for 1 job" in str(finding) for finding in examine(session, jobs))
    jobs.cancel(session, job)
    jobs.retry(session, job)
    session.delete(job)
    session.commit()


def test_a_result_without_its_key_costs_no_attempt(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    paid = shop.pay.enqueue(session, account=1, token=SECRET)
    after = shop.report.options(after=paid).enqueue(session)
    session.commit()
    with jobs.worker() as worker:
        jobs.wait(after, timeout=30)
        assert worker
    jobs.retry(session, after)
    session.commit()
    monkeypatch.setenv("SQLA_JOBS_KEYS", OTHER)
    before = after.attempt
    jobs.worker().drain()
    session.expire_all()
    assert (after.state, after.runs[-1].outcome, after.attempt) == (JobState.scheduled, "snoozed", before)
    assert after.run_at - after.runs[-1].finished_at > timedelta(seconds=30)
    monkeypatch.setenv("SQLA_JOBS_KEYS", OLD)
    drain(session, jobs, ahead=100)
    assert jobs.decrypted(after.result) == [f"charged {SECRET}"]


def test_a_signal_without_its_key_is_not_discarded(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    job = shop.confirm.enqueue(session)
    session.commit()
    drain(session, jobs)
    jobs.signal(session, job, "code", SECRET)
    session.commit()
    monkeypatch.setenv("SQLA_JOBS_KEYS", OTHER)
    jobs.worker().drain()
    session.expire_all()
    assert job.runs[-1].error_type == "Undecryptable"
    monkeypatch.setenv("SQLA_JOBS_KEYS", OLD)
    drain(session, jobs, ahead=100)
    assert jobs.decrypted(job.result) == SECRET


def test_an_error_that_cannot_be_encrypted_is_not_stored_plain(
    session: Session, database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    application = new_jobs()

    @application.task(name="lose", encrypted=["token"], max_attempts=1)
    def lose(run: RunContext, token: str, note: str) -> None:
        monkeypatch.delenv("SQLA_JOBS_KEYS")
        raise ValueError(note)

    job = lose.enqueue(session, token=SECRET, note="private note")
    session.commit()
    drain(session, application, errors="record")
    (run,) = job.runs
    assert (job.state, run.error_type, run.traceback) == (JobState.failed, "ValueError", None)
    assert "private" not in str(run.error)


def test_a_worker_logs_no_key_when_it_debugs(session: Session, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    shop.pay.enqueue(session, account=1, token=SECRET)
    session.commit()
    jobs.worker().drain()
    assert OLD not in caplog.text + repr(vars(jobs)) + repr(vars(jobs._keys))
