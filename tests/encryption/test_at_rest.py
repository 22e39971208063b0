"""What is in the database, and what people see of it."""

from __future__ import annotations

import asyncio
import base64
import json
import logging

import pytest
from click.testing import CliRunner
from flask import Flask
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from sqla_jobs import JobFailed, JobState, RunEvent, Undecryptable
from sqla_jobs.cli.main import main
from sqla_jobs.dashboard import allow_everyone, create_blueprint
from sqla_jobs.errors import ArgumentsError
from sqla_jobs.testing import assert_enqueued, assert_not_enqueued, drain, enqueued, make_job, run_job
from tests.encryption import shop
from tests.encryption.conftest import OLD, OTHER
from tests.encryption.shop import jobs
from tests.helpers import new_jobs

SECRET = "sk_live_4f9a77c1d2"


def stored(session: Session) -> str:
    """All rows of all tables, as text."""
    session.commit()
    tables = [f"{table.name}" for table in shop.Base.metadata.sorted_tables]
    return "\n".join(row for name in tables for row in session.scalars(text(f"SELECT t::text FROM {name} t")))


def command(*arguments: str) -> str:
    names, others = [*arguments[: 1 + (arguments[0] == "batch")]], arguments[1 + (arguments[0] == "batch") :]
    done = CliRunner().invoke(main, [*names, "tests.encryption.shop:jobs", *others])
    assert done.exit_code == 0, done.output
    return done.output


def test_no_table_holds_a_secret_in_any_of_its_forms(session: Session, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    paid = shop.pay.enqueue(session, account=7, token=SECRET)
    shop.report.options(after=paid).enqueue(session)
    shop.settle.enqueue(session, account=7, secrets={SECRET: 0.1})
    shop.fetch.enqueue(session, url=SECRET)
    shop.pay.enqueue_many(session, [{"account": 8, "token": SECRET}])
    shop.refuse.enqueue(session, account=8, token=SECRET)
    jobs.enqueue(session, shop.Login(SECRET))
    waiting = shop.confirm.enqueue(session)
    session.commit()
    drain(session, jobs, errors="record", ahead=3600)
    jobs.signal(session, waiting, "code", SECRET)
    running = stored(session)
    drain(session, jobs, errors="record", ahead=3600)
    at_end = stored(session)
    assert "(encrypted)" in running
    for rows in (running, at_end):
        for form in (SECRET, base64.b64encode(SECRET.encode()).decode(), "charging account"):
            assert form not in rows
    assert shop.seen == [(7, SECRET), (7, {SECRET: 0.1}), (8, SECRET)]
    assert shop.charged == [SECRET, SECRET]
    assert waiting.state == JobState.succeeded
    assert SECRET not in caplog.text
    assert OLD not in caplog.text


def test_results_are_decrypted_as_their_types(session: Session) -> None:
    paid = shop.pay.enqueue(session, account=7, token=SECRET)
    after = shop.report.options(after=paid).enqueue(session)
    amounts = {"a": 0.1, "b": 1e23}
    settled, fetched = shop.settle.enqueue(session, account=1, secrets=amounts), shop.fetch.enqueue(session, url="x")
    session.commit()
    with jobs.worker():
        assert shop.pay.result(paid, timeout=30) == {"receipt": f"charged {SECRET}"}
        assert shop.report.result(after, timeout=30) == [f"charged {SECRET}"]
        assert shop.settle.result(settled, timeout=30) == amounts
        assert asyncio.run(shop.fetch.result_async(fetched, timeout=30)) == ["x"]
        updates = [*jobs.follow(paid)]
    session.expire_all()
    assert jobs.decrypted(paid.result) == jobs.decrypted(updates[-1].result) == {"receipt": f"charged {SECRET}"}
    assert jobs.decrypted(updates[-1].progress_message) == "charging account 7"
    assert jobs.decrypted(paid.args) == {"account": 7, "token": SECRET}
    assert paid.args["account"] == 7


def test_a_step_is_not_repeated_by_a_retry(session: Session) -> None:
    job = shop.pay.enqueue(session, account=7, token=SECRET)
    session.commit()
    drain(session, jobs)
    jobs.retry(session, job)
    drain(session, jobs)
    assert len(shop.seen) == 2
    assert shop.charged == [SECRET]


def test_errors_are_encrypted_and_told_by_nobody_but_the_ring(session: Session) -> None:
    job = shop.refuse.options(max_attempts=1).enqueue(session, account=1, token=SECRET)
    session.commit()
    with jobs.worker(), pytest.raises(JobFailed) as failed:
        jobs.wait(job, timeout=30)
    assert "(encrypted)" in str(failed.value)
    session.expire_all()
    run = job.runs[0]
    assert run.error_type == "ValueError"
    assert "withheld" in jobs.decrypted(run.error)  # as it is for a sensitive argument
    assert "Traceback" in jobs.decrypted(run.traceback)


def test_handlers_and_logs_get_errors_as_those_of_sensitive_arguments(
    session: Session, database: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    application, heard = new_jobs(), list[RunEvent]()

    @application.task(name="give", encrypted=["token"], max_attempts=1)
    def give(token: str, note: str) -> None:
        raise ValueError(f"not {note}\nnot {token}")

    application.on("failed")(heard.append)
    application.bind(database)
    give.enqueue(session, token=SECRET, note="now")
    session.commit()
    application.worker().drain()
    (event,) = heard
    assert event.error is not None
    assert event.error.startswith("not now\n")
    assert SECRET not in event.error + caplog.text
    assert "not now" in caplog.text


def test_people_see_that_it_is_encrypted_whatever_keys_they_have(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    paid = shop.pay.enqueue(session, account=7, token=SECRET)
    refused = shop.refuse.options(max_attempts=1).enqueue(session, account=8, token=SECRET)
    waiting = shop.confirm.enqueue(session)
    batch = jobs.batch(session, name="one")
    shop.refuse.options(max_attempts=1, batch=batch).enqueue(session, account=9, token=SECRET)
    session.commit()
    drain(session, jobs, errors="record")
    jobs.signal(session, waiting, "code", SECRET)
    session.commit()
    app = Flask("shop")
    app.register_blueprint(create_blueprint(jobs, authorize=allow_everyone), url_prefix="/jobs")
    client = app.test_client()
    for keys in (OLD, OTHER, "nonsense", None):
        if keys is None:
            monkeypatch.delenv("SQLA_JOBS_KEYS")
        else:
            monkeypatch.setenv("SQLA_JOBS_KEYS", keys)
        shown = json.loads(command("show", str(paid.id), "--json"))
        assert shown["args"] == {"account": 7, "token": "(encrypted)"}
        assert shown["runs"][0]["result"] == "(encrypted)"
        assert shown["progress_message"] == "(encrypted)"
        assert [step["result"] for step in shown["steps"]] == ["(encrypted)"]
        failed = json.loads(command("show", str(refused.id), "--json"))["runs"][0]
        assert (failed["error_type"], failed["error"]) == ("ValueError", "(encrypted)")
        told = [
            *(command(name) for name in ("list", "status", "doctor", "audit")),
            *(command("find", words) for words in (SECRET, "charged", "account")),
            command("list", "--arg", "account=7"),
            command("batch", "show", str(batch.id)),
            command("why", str(waiting.id)),
        ]
        pages = (
            "",
            "tasks",
            "audit",
            "batches",
            "jobs",
            f"jobs/{paid.id}",
            f"jobs/{refused.id}",
            f"batches/{batch.id}",
        )
        for page in pages:
            answer = client.get(f"/jobs/{page}", follow_redirects=True)
            assert answer.status_code == 200, page
            told.append(answer.text)
        assert not [one for one in told if SECRET in one or "gAAAA" in one]
    with pytest.raises(Undecryptable):
        jobs.decrypted(paid.args)
    jobs.cancel(session, waiting)
    assert waiting.state == JobState.cancelled


def test_jobs_stored_before_the_option_are_read_and_those_stored_with_it_after(
    session: Session, database: Engine
) -> None:
    before, during, after = new_jobs(), new_jobs(), new_jobs()
    got: list[str] = []

    def note(token: str) -> str:
        got.append(token)
        return token

    before.task(name="note")(note).enqueue(session, token="early")
    session.commit()
    encrypting = during.task(name="note", encrypted=["token"])(note)
    assert encrypting._declaration.takes != before.tasks["note"]._declaration.takes  # so old code leaves it to new code
    late = encrypting.enqueue(session, token=SECRET)
    session.commit()
    drain(session, during)
    assert got == ["early", SECRET]
    done = after.task(name="note", encrypted=[])(note)
    done.enqueue(session, token="later")
    session.commit()
    assert "later" in stored(session)
    during.retry(session, late)
    session.commit()
    drain(session, after)
    assert sorted(got[2:]) == sorted(["later", SECRET])


def test_a_search_by_argument_never_finds_an_encrypted_one(session: Session) -> None:
    shop.pay.enqueue(session, account=7, token=SECRET)
    session.commit()
    assert json.loads(command("list", "--arg", "account=7", "--json"))
    assert not json.loads(command("list", "--arg", f"token={SECRET}", "--json"))
    assert "arguments" not in command("find", "gAAAA").partition("sensitive")[0]


def test_erasing_leaves_nothing_encrypted(session: Session) -> None:
    job = shop.pay.enqueue(session, account=7, token=SECRET)
    session.commit()
    drain(session, jobs)
    session.commit()
    assert "gAAAA" in stored(session)
    command("erase", str(job.id))
    assert "gAAAA" not in stored(session)
    assert "(erased)" in command("show", str(job.id))


def test_the_command_line_enqueues_and_signals(session: Session) -> None:
    job_id = int(command("enqueue", "pay", json.dumps({"account": 7, "token": SECRET})))
    waiting = shop.confirm.enqueue(session)
    session.commit()
    command("signal", str(waiting.id), "code", json.dumps(SECRET))
    assert SECRET not in stored(session)
    drain(session, jobs)
    assert shop.seen == [(7, SECRET)]
    assert jobs.decrypted(waiting.result) == SECRET
    assert jobs.decrypted(session.get_one(jobs.Job, job_id).result) == {"receipt": f"charged {SECRET}"}


def test_the_test_kit_sees_the_arguments(session: Session) -> None:
    shop.pay.enqueue(session, account=7, token=SECRET)
    made = make_job(session, shop.pay, args={"account": 8, "token": SECRET})
    session.flush()
    assert_enqueued(session, shop.pay, account=7, token=SECRET)
    assert_not_enqueued(session, shop.pay, token="another")
    assert len(enqueued(session, shop.pay, token=SECRET)) == 2
    with pytest.raises(AssertionError) as refused:
        assert_enqueued(session, shop.pay, account=7, token="another")
    assert SECRET not in str(refused.value)
    assert SECRET not in stored(session)
    assert made.args["account"] == 8
    assert run_job(session, shop.pay)(account=1, token="t") == {"receipt": "charged t"}
    assert run_job(session, shop.confirm, signals={"code": ["12"]})() == "12"


def test_a_value_that_looks_encrypted_is_refused(session: Session) -> None:
    with pytest.raises(ArgumentsError):
        shop.settle.enqueue(session, account=1, secrets={"(encrypted)": 1.0})
    shop.settle.enqueue(session, account=1, secrets={'{"(encrypted)": "': 1.0})
    session.commit()
    drain(session, jobs)
    assert shop.seen == [(1, {'{"(encrypted)": "': 1.0})]
