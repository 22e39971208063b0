"""What is in the database, and what people see of it."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from decimal import Decimal

import pytest
from click.testing import CliRunner
from flask import Flask
from sqlalchemy import text
from sqlalchemy.orm import Session

from sqla_jobs import JobState
from sqla_jobs.cli.main import main
from sqla_jobs.dashboard import allow_everyone, create_blueprint
from sqla_jobs.testing import assert_enqueued, assert_not_enqueued, drain, enqueued, make_job
from tests.encryption import shop
from tests.encryption.conftest import OLD, OTHER
from tests.encryption.shop import Box, Card, jobs

SECRET = "sk_live_4f9a77c1d2"


def stored(session: Session) -> str:
    """All rows of all tables, as text."""
    session.commit()
    tables = [f"{table.name}" for table in shop.Base.metadata.sorted_tables]
    return "\n".join(row for name in tables for row in session.scalars(text(f"SELECT t::text FROM {name} t")))


def command(*arguments: str) -> str:
    done = CliRunner().invoke(main, [arguments[0], "tests.encryption.shop:jobs", *arguments[1:]])
    assert done.exit_code == 0, done.output
    return done.output


def test_no_table_holds_a_secret_in_any_of_its_forms(session: Session, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    boxes = {"one": Box(SECRET.encode(), Decimal("17.25"))}
    paid = shop.pay.enqueue(session, account=7, token=SECRET)
    shop.report.options(after=paid).enqueue(session)
    shop.keep.enqueue(session, cards=[Card(number=SECRET, holder="ada")], boxes=boxes)
    shop.fetch.enqueue(session, url=SECRET)
    shop.pay.enqueue_many(session, [{"account": 8, "token": SECRET}])
    shop.refuse.enqueue(session, account=8, token=SECRET)
    waiting = shop.confirm.enqueue(session)
    session.commit()
    drain(session, jobs, errors="record", ahead=3600)
    jobs.signal(session, waiting, "card", Card(number=SECRET, holder="ada"))
    running = stored(session)
    drain(session, jobs, errors="record", ahead=3600)
    at_end = stored(session)
    for rows in (running, at_end):
        assert "(encrypted)" in rows
        for form in (SECRET, base64.b64encode(SECRET.encode()).decode(), SECRET.encode().hex(), "17.25"):
            assert form not in rows
    assert shop.seen == [(7, SECRET), ([Card(number=SECRET, holder="ada")], boxes), (8, SECRET)]
    assert shop.charged == [SECRET, SECRET]
    assert waiting.state == JobState.succeeded
    assert "not now" in at_end  # the other lines of an error stay readable
    assert SECRET not in caplog.text
    assert OLD not in caplog.text + repr(vars(jobs)) + repr(vars(jobs._keys))


def test_results_are_decrypted_as_their_types(session: Session) -> None:
    paid = shop.pay.enqueue(session, account=7, token=SECRET)
    after = shop.report.options(after=paid).enqueue(session)
    card = Card(number=SECRET, holder="ada")
    kept, fetched = shop.keep.enqueue(session, cards=[card], boxes={}), shop.fetch.enqueue(session, url="x")
    session.commit()
    with jobs.worker(clock=False):
        assert shop.pay.result(paid, timeout=30) == {"receipt": f"charged {SECRET}"}
        assert shop.report.result(after, timeout=30) == [f"charged {SECRET}"]
        assert shop.keep.result(kept, timeout=30) == [card]
        assert asyncio.run(shop.fetch.result_async(fetched, timeout=30)) == ["x"]
    session.expire_all()
    assert kept.args["cards"][0]["holder"] == "ada"
    assert [*kept.args["cards"][0]["number"]] == ["(encrypted)"]


def test_a_step_is_not_repeated_by_a_retry(session: Session) -> None:
    job = shop.pay.enqueue(session, account=7, token=SECRET)
    session.commit()
    drain(session, jobs)
    jobs.retry(session, job)
    drain(session, jobs)
    assert shop.seen == [(7, SECRET), (7, SECRET)]
    assert shop.charged == [SECRET]


def test_people_see_that_it_is_encrypted_whatever_keys_they_have(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    paid = shop.pay.enqueue(session, account=7, token=SECRET)
    refused = shop.refuse.options(max_attempts=1).enqueue(session, account=8, token=SECRET)
    waiting = shop.confirm.enqueue(session)
    session.commit()
    drain(session, jobs, errors="record")
    jobs.signal(session, waiting, "card", Card(number=SECRET, holder="ada"))
    session.commit()
    app = Flask("shop")
    app.register_blueprint(create_blueprint(jobs, authorize=allow_everyone), url_prefix="/jobs")
    client = app.test_client()
    for keys in (OLD, OTHER, "nonsense", ""):
        monkeypatch.setenv("SQLA_JOBS_KEYS", keys)
        shown = json.loads(command("show", str(paid.id), "--json"))
        assert shown["args"] == {"account": 7, "token": "(encrypted)"}
        assert shown["runs"][0]["result"] == {"receipt": "(encrypted)"}
        assert [step["result"] for step in shown["steps"]] == ["(encrypted)"]
        failed = json.loads(command("show", str(refused.id), "--json"))["runs"][0]
        assert (failed["error_type"], failed["error"].splitlines()[-1]) == ("ValueError", "not now")
        told = [
            *(command(name) for name in ("list", "status", "doctor", "audit")),
            *(command("list", "--text", words) for words in (SECRET, "charged", "account")),
            command("list", "--arg", "account=7"),
            command("show", str(waiting.id)),
        ]
        for page in ("", "tasks", "audit", "jobs", f"jobs/{paid.id}", f"jobs/{refused.id}"):
            answer = client.get(f"/jobs/{page}", follow_redirects=True)
            assert answer.status_code == 200, page
            told.append(answer.text)
        assert not any(part in one for one in told for part in (SECRET, "gAAAA", OLD))


def test_keys_of_unique_jobs_and_limits_are_made_of_the_secret_and_hashed(session: Session) -> None:
    one, same, other = (shop.refuse.enqueue(session, account=1, token=token) for token in (SECRET, SECRET, "another"))
    assert one is same
    assert one is not other
    first, second, third = (shop.pay.enqueue(session, account=1, token=token) for token in (SECRET, SECRET, "another"))
    session.flush()
    assert first.gates == second.gates != third.gates
    assert SECRET not in f"{one.unique_key} {first.gates}"
    jobs.set_limit(session, shop.pay, key=SECRET, running=0)
    session.commit()
    jobs.worker().drain()
    session.expire_all()
    assert [job.state for job in (first, second, third)] == ["queued", "queued", "succeeded"]


def test_the_test_kit_sees_the_arguments(session: Session) -> None:
    shop.pay.enqueue(session, account=7, token=SECRET)
    make_job(session, shop.pay, args={"account": 8, "token": SECRET})
    session.flush()
    assert_enqueued(session, shop.pay, account=7, token=SECRET)
    assert_not_enqueued(session, shop.pay, token="another")
    assert len(enqueued(session, shop.pay, token=SECRET)) == 2
    with pytest.raises(AssertionError) as refused:
        assert_enqueued(session, shop.pay, account=7, token="another")
    assert SECRET not in str(refused.value)
    assert SECRET not in stored(session)


def test_a_model_with_a_secret_hides_it_outside_of_the_library() -> None:
    card = Card(number=SECRET, holder="ada")
    assert json.loads(card.model_dump_json()) == {"number": "(encrypted)", "holder": "ada"}
    assert card.model_dump()["number"] == SECRET
