"""The dashboard, asked by HTTP: who may do what, what is shown, what is changed."""

from __future__ import annotations

import html
import re
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import httpx2
import pytest
from sqlalchemy import Engine, func, insert, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from sqla_jobs.dashboard.data import listing
from sqla_jobs.dashboard.data.reading import PATIENCE, reading
from sqla_jobs.dashboard.standalone import OneTimeToken
from sqla_jobs.dashboard.standalone import create_app as create_alone
from sqla_jobs.testing import make_job
from tests import dashboard_shop as shop
from tests.conftest import ROOT
from tests.dashboard.visitor import Visitor, words
from tests.dashboard_shop import HOSTILE, create_app, jobs
from tests.helpers import flood


def rows(page: str) -> list[int]:
    """The ids of the jobs in a list, in order."""
    return [int(one) for one in re.findall(r'<tr data-id="(\d+)"', page)]


def link(page: str, rel: str) -> str | None:
    found = re.search(rf'rel="{rel}" href="([^"]+)"', page)
    return html.unescape(found[1]).removeprefix("/ops") if found else None


def audit(session: Session) -> list[tuple[str, str, str]]:
    session.rollback()
    lines = session.scalars(select(jobs.Audit).order_by(jobs.Audit.id))
    return [(line.actor, line.action, line.subject) for line in lines]


PATHS = [
    "/",
    "/jobs",
    "/jobs/1",
    "/schedules",
    "/schedules/new",
    "/schedules/1",
    "/schedules/1/edit",
    "/limits",
    "/limits/set",
    "/tasks",
    "/processes",
    "/audit",
]


# --- who may come in


@pytest.mark.parametrize("answer", [None, False])
def test_whom_authorize_refuses_sees_nothing(answer: Any, database: Engine, session: Session) -> None:
    shop.add.enqueue(session, a=1)
    session.commit()
    visitor = Visitor(create_app(lambda: answer))
    for path in PATHS:
        visitor.get(path, 403)
    for path in ("/jobs/1/retry", "/queues/pause", "/jobs/change", "/schedules/new"):
        assert visitor.post(path).status_code == 403


@pytest.mark.slow
def test_a_viewer_looks_and_changes_nothing(database: Engine, session: Session) -> None:
    job = shop.add.options(delay=60).enqueue(session, a=1)
    session.add(jobs.Schedule(name="nightly", task="add", cron="0 2 * * *", args={"a": 1}))
    session.commit()
    visitor = Visitor(create_app(lambda: "viewer"))
    for path in PATHS:
        page = visitor.get(path)
        assert "read-only" in page
        assert 'method="post"' not in page or path in ("/jobs", "/schedules/new", "/schedules/1/edit", "/limits/set")
    for path in (f"/jobs/{job.id}/cancel", "/queues/pause", "/jobs/change", "/schedules/1/fire"):
        response = visitor.post(path, {"queue": "default", "action": "cancel", "all": "1"})
        assert response.status_code == 403
    session.refresh(job)
    assert job.state == "scheduled"
    assert audit(session) == []


# --- that a change was asked for


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, 303),
        ({"Sec-Fetch-Site": "none"}, 303),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://rewritten.by.a.proxy"}, 303),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost"}, 403),
        ({"Origin": "http://localhost"}, 303),
        ({"Origin": "https://localhost"}, 303),  # a proxy ended the encryption
        ({"Origin": "http://localhost:8000"}, 403),
        ({"Origin": "null"}, 403),
        ({}, 303),
    ],
    ids=str,
)
def test_a_change_comes_from_a_page_of_its_own(
    visitor: Visitor, session: Session, headers: dict[str, str], status: int
) -> None:
    """Without a secret, a token and a cookie."""
    answer = visitor.post("/queues/pause", {"queue": "mail"}, **headers)
    assert (answer.status_code, "Set-Cookie" in answer.headers) == (status, False)
    assert len(audit(session)) == (status == 303)
    assert "Set-Cookie" not in visitor.client.get("/ops/", headers=headers).headers


@pytest.mark.slow
def test_every_page_comes_with_a_strict_policy_and_nothing_inline(visitor: Visitor, session: Session) -> None:
    session.add(jobs.Schedule(name="nightly", task="add", cron="0 2 * * *", args={"a": 1}))
    shop.fail.enqueue(session, message="no")
    session.commit()
    jobs.worker().drain()
    for path in [*PATHS, "/jobs/404", "/jobs?state=wrong"]:
        response = visitor.client.get(f"/ops{path}")
        policy = response.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert response.headers["Cache-Control"] == "no-store"
        page = response.text
        assert not re.search(r"<style|<script(?! src=)", page)
        in_tags = " ".join(re.findall(r"<[a-z][^<>]*>", page))
        assert not re.search(r"\s(style|on\w+)=|javascript:", re.sub(r'"[^"]*"', '""', in_tags))
        assert set(re.findall(r'(?:src|href)="(\w+:[^"]*)', page)) == set()


# --- what is shown


@pytest.mark.slow
def test_hostile_names_arguments_errors_and_tracebacks_are_only_text(visitor: Visitor, session: Session) -> None:
    session.add(
        job := jobs.Job(
            task=HOSTILE, queue=HOSTILE, args={HOSTILE: HOSTILE}, unique_key=HOSTILE, note=HOSTILE, state="failed",
            finished_at=datetime.now(UTC), progress_message=HOSTILE,
        )
    )  # fmt: skip
    session.add(unknown := jobs.Job(task=f"{HOSTILE}!", queue=HOSTILE, args={}, state="queued"))
    session.add(
        schedule := jobs.Schedule(name=HOSTILE, task=HOSTILE, cron=HOSTILE, timezone=HOSTILE, args={"x": HOSTILE})
    )
    session.add(
        disabled := jobs.Schedule(name="b", task="add", cron="* * * * *", enabled=False, disabled_reason=HOSTILE)
    )
    session.add(jobs.Process(host=HOSTILE, queues={HOSTILE: 1}, kind=HOSTILE))
    session.add(jobs.Queue(name=HOSTILE, paused_at=datetime.now(UTC)))
    session.add(jobs.Audit(actor=HOSTILE, action=HOSTILE, subject=HOSTILE, details={HOSTILE: HOSTILE}))
    session.flush()
    session.add(
        jobs.Run(
            job_id=job.id, attempt=1, outcome="failed", error_type=HOSTILE, error=HOSTILE, traceback=HOSTILE,
            result={HOSTILE: HOSTILE},
        )
    )  # fmt: skip
    session.commit()
    own = [f"/jobs/{job.id}", f"/jobs/{unknown.id}", f"/schedules/{schedule.id}", f"/schedules/{disabled.id}"]
    pages = [visitor.get(path) for path in (*PATHS[:2], "/jobs?state=failed", *own, f"{own[2]}/edit", *PATHS[-3:])]
    assert sum(page.count("&lt;script&gt;") for page in pages) > 30
    named = ("task", "queue", "error", "arg", "key", "newer_than", "state", "schedule", "sort", "after")
    pages += [visitor.client.get("/ops/jobs", query_string={name: HOSTILE}).text for name in named]
    for page in pages:
        assert "<script>alert" not in page
        assert "<img" not in page
        assert "49" not in re.findall(r"onerror=alert\(2\)>(\d+)", html.unescape(page))


@pytest.mark.slow
def test_a_job_tells_its_whole_story(visitor: Visitor, session: Session) -> None:
    shop.fail.options(unique_key="only one").enqueue(session, message="first line\nsecond line")
    session.commit()
    jobs.worker().drain()
    session.execute(update(jobs.Job).values(note="of the application"))
    session.commit()
    page = words(visitor.get("/jobs/1"))
    for said in ("fail #1 failed", "ValueError first line second line", "Traceback", "only one", "of the application"):
        assert said in page, said
    job = make_job(session, shop.add, state="running", args={"a": 1}, cancel_requested_at=datetime.now(UTC))
    session.commit()
    assert "cancelling" in visitor.get(f"/jobs/{job.id}")


# --- the overview


@pytest.mark.slow
def test_the_overview_counts_and_groups(visitor: Visitor, session: Session) -> None:
    flood(session, "scheduled", rare=0, many=3)
    assert re.search(r"mark 100 % ValueError no 3 retrying", words(visitor.get("/")))
    session.execute(text("TRUNCATE sqla_jobs, sqla_runs CASCADE"))
    for n in range(3):
        shop.add.enqueue(session, a=n)
    for n in range(2):
        shop.fail.enqueue(session, message=f"number {n}")
    shop.add.options(delay=60).enqueue(session, a=1)
    session.commit()
    jobs.worker().drain()
    page = words(visitor.get("/"))
    for said in ("1 scheduled", "3 succeeded", "2 failed", "7 runs", "57 % failed"):
        assert said in page
    assert re.search(r"fail 100 % ValueError number \d 2 failed", page)


@pytest.mark.slow
def test_what_is_wrong_is_said_plainly(visitor: Visitor, session: Session, database: Engine) -> None:
    shop.add.options(queue="lonely").enqueue(session, a=1)
    make_job(session, jobs, task="forgotten")
    session.add(jobs.Schedule(name="nightly", task="add", cron="0 2 * * *", args={"a": 1}))
    session.commit()
    page = words(visitor.get("/"))
    for said in ("workers: none is alive", "task forgotten: this application does not declare it", "0 live clocks"):
        assert said in page
    with jobs.worker(["default"], clock=False), jobs.clock():
        page = words(visitor.get("/"))
    assert "queue lonely: no live worker serves it" in page
    assert "no clock" not in page


def test_a_queue_is_paused_and_resumed(visitor: Visitor, session: Session) -> None:
    shop.add.options(queue="mail").enqueue(session, a=1)
    session.commit()
    page = visitor.change("/queues/pause", {"queue": "mail"})
    assert 'role="status"' in page
    assert 'class="pill paused"' in page
    assert 'role="status"' not in visitor.get("/")  # told once
    assert 'class="pill paused"' not in visitor.change("/queues/resume", {"queue": "mail"})
    visitor.change("/queues/resume", {"queue": "mail"})  # which changes nothing
    assert audit(session) == [("ada@example.com", "pause", "queue mail"), ("ada@example.com", "resume", "queue mail")]


# --- filters, sorting, pages


def fill(session: Session) -> None:
    """120 jobs of every kind."""
    for n in range(120):
        state = ("succeeded", "failed", "queued", "scheduled")[n % 4]
        at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=n)
        session.add(
            jobs.Job(
                task=("add", "fail")[n % 2], queue=("default", "mail", "mail")[n % 3], priority=n % 5 - 2,
                args={"n": n, "tag": f"tag {n % 10}"}, state=state, created_at=at, run_at=at, started_at=at,
                finished_at=at if n % 4 < 2 else None, unique_key=f"key {n}" if n % 4 > 1 else None,
            )
        )  # fmt: skip
        session.flush()
        if state == "failed":
            session.add(
                jobs.Run(job_id=n + 1, attempt=1, outcome="failed", error_type="KeyError", error=f"no {n} %_\\")
            )
    session.commit()


FILTERS: list[tuple[str, Callable[[int], bool]]] = [
    ("state=failed", lambda n: n % 4 == 1),
    ("task=add", lambda n: n % 2 == 0),
    ("queue=mail&task=fail&state=queued", lambda n: False),
    ("error=keyerror", lambda n: n % 4 == 1),
    ("error=no+17+%25_", lambda n: n == 17),
    ("arg=tag=tag+3", lambda n: n % 10 == 3),
    ('arg={"n":13,"tag":"tag+3"}', lambda n: n == 13),
    ("key=key+18", lambda n: n == 18),
    ("newer_than=2026-01-02T00:00&older_than=2026-01-02T10:00", lambda n: 24 <= n < 34),
    ("state=succeeded&older_than=2026-01-01T09:00", lambda n: n % 4 == 0 and n < 9),
    ("state=queued&queue=mail", lambda n: n % 4 == 2 and n % 3 > 0),
]


@pytest.mark.slow
def test_filters_find_what_fits_and_nothing_else(visitor: Visitor, session: Session) -> None:
    fill(session)
    for query, fits in FILTERS:
        found: list[int] = []
        path: str | None = f"/jobs?{query}"
        while path:
            page = visitor.get(path)
            found += rows(page)
            path = link(page, "next")
        assert sorted(found) == [n + 1 for n in range(120) if fits(n)], query


@pytest.mark.parametrize("state", ["", "running", "failed"])
@pytest.mark.slow
def test_pages_go_forward_while_jobs_come_and_go(
    visitor: Visitor, session: Session, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "SIZE", 10)
    fill(session)
    process = jobs.Process(kind="worker")
    session.add(process)
    session.flush()
    running = {"state": "running", "current_run_id": 1, "process_id": process.id}
    if state == "running":
        session.execute(update(jobs.Job).where(jobs.Job.state == "succeeded").values(**running))
    session.commit()
    found: list[int] = []
    path: str | None = f"/jobs?state={state}"
    while path:
        page = visitor.get(path)
        found += rows(page)
        path = link(page, "next")
        new = {"state": state or "queued", **(running if state == "running" else {})}
        new |= {"finished_at": datetime.now(UTC), "started_at": datetime(2030, 1, 1, tzinfo=UTC)}
        session.add(jobs.Job(task="add", args={}, **new))
        session.commit()
    known = [one for one in found if one <= 120]
    assert len(known) == len(set(known)) == (30 if state else 120)


# --- one job


def test_each_action_on_a_job_does_what_it_says_and_leaves_a_line(visitor: Visitor, session: Session) -> None:
    job = shop.add.options(delay=3600).enqueue(session, a=1)
    session.commit()
    job_id = job.id
    one = f"/jobs/{job_id}"

    def now() -> Any:
        session.rollback()
        session.refresh(job)
        return job

    assert 'role="status"' in visitor.change(f"{one}/change", {"run_at": "2031-02-03T04:05"})
    assert (now().state, job.run_at) == ("scheduled", datetime(2031, 2, 3, 4, 5, tzinfo=UTC))
    visitor.change(f"{one}/change", {"to": "mail", "priority": "-3"})
    assert (now().queue, job.priority) == ("mail", -3)
    visitor.change(f"{one}/retry")
    assert now().state == "queued"
    visitor.change(f"{one}/cancel")
    assert now().state == "cancelled"
    visitor.change(f"{one}/retry")
    assert now().state == "queued"
    visitor.change(f"{one}/delete")
    assert session.scalar(select(func.count()).select_from(jobs.Job)) == 0
    actions = ["change", "change", "retry", "cancel", "retry", "delete"]
    assert audit(session) == [("ada@example.com", action, f"job {job_id}") for action in actions]
    details = session.scalars(select(jobs.Audit.details).order_by(jobs.Audit.id)).all()
    assert details[1:] == [{"queue": "mail", "priority": -3}, {}, {}, {}, {"task": "add"}]
    assert "2031-02-03T04:05:00+00:00" in words(visitor.get("/audit"))
    assert visitor.get(f"/audit?subject=job+{job_id}").count("<strong>change</strong>") == 2


def test_what_cannot_be_done_is_said_and_changes_nothing(visitor: Visitor, session: Session) -> None:
    job = shop.add.enqueue(session, a=1)
    session.commit()
    whole = select(jobs.Job.__table__)
    before = session.execute(whole).all()
    for action, fields in (
        ("retry", {}),
        ("change", {"run_at": "tomorrow"}),
        ("change", {"run_at": "9999-12-31T23:59"}),
        ("change", {"to": "a\x00b", "priority": "0"}),
        ("change", {"to": "mail", "priority": "11"}),
    ):
        assert visitor.post(f"/jobs/{job.id}/{action}", fields).status_code == 409
        session.rollback()
        assert session.execute(whole).all() == before
    for path in ("/jobs/999/retry", f"/jobs/{job.id}/explode"):
        assert visitor.post(path).status_code == 404
    assert audit(session) == []


def test_an_audit_line_and_its_change_are_one_commit(
    visitor: Visitor, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = shop.add.options(delay=60).enqueue(session, a=1)
    session.commit()
    session.execute(text("ALTER TABLE sqla_audit ADD CONSTRAINT full_up CHECK (false) NOT VALID"))
    session.commit()
    response = visitor.post(f"/jobs/{job.id}/cancel")
    assert response.status_code == 503
    session.refresh(job)
    assert job.state == "scheduled"


# --- many jobs


def hidden(page: str) -> dict[str, Any]:
    """The fields of the form that goes on with a change of many jobs."""
    form = re.search(r'<form[^>]*action="/ops/jobs/change/run".*?</form>', page, re.DOTALL)
    assert form, page
    fields: dict[str, Any] = {}
    for name, value in re.findall(r'type="hidden" name="([^"]+)" value="([^"]*)"', form[0]):
        if name == "ids":
            fields.setdefault("ids", []).append(value)
        else:
            fields[name] = html.unescape(value)
    return fields


@pytest.mark.slow
def test_all_that_match_are_changed_after_a_confirmation_with_the_exact_number(
    visitor: Visitor, session: Session
) -> None:
    for n in range(1234):
        session.add(jobs.Job(task="add", args={"a": n}, state="failed", finished_at=datetime.now(UTC)))
    session.add(jobs.Job(task="fail", args={}, state="failed", finished_at=datetime.now(UTC)))
    session.commit()
    confirm = visitor.post("/jobs/change", {"action": "retry", "all": "1", "task": "add", "state": "failed"})
    assert confirm.status_code == 200
    assert "Retry 1,234 failed jobs?" in words(confirm.text)
    session.rollback()
    assert session.scalar(select(func.count()).where(jobs.Job.state == "queued")) == 0
    session.add(jobs.Job(task="add", args={"a": 0}, state="failed", finished_at=datetime.now(UTC)))  # too late
    session.execute(update(jobs.Job).where(jobs.Job.id <= 4).values(state="succeeded"))  # changed meanwhile
    session.commit()
    page = visitor.post("/jobs/change/run", hidden(confirm.text)).text
    while "data-auto" in page:  # a request works for a second
        page = visitor.post("/jobs/change/run", hidden(page)).text
    assert "1,230 jobs retried" in words(page)
    assert "4 jobs that matched before had changed meanwhile" in words(page)
    session.rollback()
    assert session.scalar(select(func.count()).where(jobs.Job.state == "queued")) == 1230
    assert {line[1] for line in audit(session)} == {"retry many"}
    assert sum(session.scalars(select(jobs.Audit.details["changed"].as_integer()))) == 1230


def test_many_are_moved_rescheduled_and_retried_bit_by_bit(visitor: Visitor, session: Session) -> None:
    for n in range(700):
        session.add(jobs.Job(task="add", args={"a": n}, state="failed", finished_at=datetime.now(UTC)))
    session.commit()

    def change(action: str, **asked: str) -> str:
        confirm = visitor.post("/jobs/change", {"action": action, "all": "1", "task": "add"}).text
        assert all(f'name="{name}"' in confirm for name in asked)
        page = visitor.post("/jobs/change/run", hidden(confirm) | asked).text
        while "data-auto" in page:  # a request works for a second
            page = visitor.post("/jobs/change/run", hidden(page)).text
        session.rollback()
        return words(page)

    assert "is not a duration" in change("retry", over="9" * 18)
    assert "700 jobs retried" in change("retry", over="70m")
    due = session.scalars(select(jobs.Job.run_at).where(jobs.Job.state == "scheduled").order_by(jobs.Job.id)).all()
    assert (due[-1] - due[0]).total_seconds() == pytest.approx(70 * 60 * 699 / 700, abs=10)
    assert "700 jobs changed" in change("change", to="slow", priority="")
    assert "nothing to change is given" in change("change", to="", priority="")
    assert "700 jobs changed" in change("change", run_at="2031-02-03T04:05")
    found = session.execute(select(jobs.Job.queue, jobs.Job.priority, jobs.Job.run_at).distinct()).all()
    assert found == [("slow", 0, datetime(2031, 2, 3, 4, 5, tzinfo=UTC))]
    details = session.scalars(select(jobs.Audit.details).order_by(jobs.Audit.id)).all()
    assert details[0]["over"] == "1:10:00"
    assert details[2]["queue"] == "slow"
    assert details[4]["run_at"] == "2031-02-03T04:05:00+00:00"


@pytest.mark.slow
def test_a_long_change_goes_on_page_by_page(visitor: Visitor, session: Session) -> None:
    """Each batch takes longer than one request may work."""
    session.execute(
        text(
            """
            CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN PERFORM pg_sleep(1.1); RETURN NULL; END $$;
            CREATE TRIGGER slow AFTER DELETE ON sqla_jobs FOR EACH STATEMENT EXECUTE FUNCTION slow()
            """
        )
    )
    for n in range(1100):
        session.add(jobs.Job(task="add", args={"a": n}, state="queued"))
    session.commit()
    page = visitor.post("/jobs/change", {"action": "delete", "all": "1"}).text
    assert "no filter is set" in words(page)
    told = list[str]()
    while "data-auto" in page or not told:
        page = visitor.post("/jobs/change/run", hidden(page)).text
        told.append(words(page.partition("<h1>")[2].partition("</h1>")[0]))
    assert told == ["500 jobs deleted so far", "1,000 jobs deleted so far", "1,100 jobs deleted"]
    session.rollback()
    assert session.scalar(select(func.count()).select_from(jobs.Job)) == 0


# --- schedules

RULE = {
    "name": "nightly",
    "task": "add",
    "cron": "30 2 * * *",
    "timezone": "Europe/Paris",
    "args": '{"a": 1}',
    "queue": "",
    "priority": "",
    "catch_up": "latest",
    "overlap": "skip",
    "jitter": "0",
}


def test_a_schedule_is_added_edited_disabled_enabled_and_run_now(visitor: Visitor, session: Session) -> None:
    page = words(visitor.change("/schedules/new", RULE))
    assert len(re.findall(r"02:30:00 CES?T", page)) == 5
    schedule = session.scalars(select(jobs.Schedule)).one()
    assert (schedule.queue, schedule.overlap, schedule.args, schedule.declared) == ("default", "skip", {"a": 1}, False)
    one = f"/schedules/{schedule.id}"
    assert 'value="30 2 * * *"' in visitor.get(f"{one}/edit")
    visitor.change(f"{one}/edit", RULE | {"cron": "0 4 * * *", "args": '{"a": 2}', "queue": "mail", "priority": "5"})
    session.refresh(schedule)
    assert (schedule.cron, schedule.args, schedule.queue, schedule.priority) == ("0 4 * * *", {"a": 2}, "mail", 5)
    for reason in (" ", "a\x00b"):
        assert visitor.post(f"{one}/disable", {"reason": reason}).status_code == 409
    assert "ticket 4711" in visitor.change(f"{one}/disable", {"reason": "see ticket 4711"})
    session.refresh(schedule)
    assert (schedule.enabled, schedule.disabled_reason) == (False, "see ticket 4711")
    assert "add #1" in words(visitor.change(f"{one}/fire"))
    job = session.get_one(jobs.Job, 1)
    assert (job.task, job.args, job.queue, job.priority, job.schedule_id) == ("add", {"a": 2}, "mail", 5, schedule.id)
    assert "nightly" in visitor.get("/jobs/1")
    visitor.change(f"{one}/enable")
    session.refresh(schedule)
    assert (schedule.enabled, schedule.disabled_reason) == (True, None)
    actions = ["add", "edit", "disable", "run now", "enable"]
    assert audit(session) == [("ada@example.com", action, "schedule nightly") for action in actions]
    details = session.scalar(select(jobs.Audit.details).where(jobs.Audit.action == "edit"))
    assert details is not None
    assert (details["cron"], details["args"]) == ({"from": "30 2 * * *", "to": "0 4 * * *"}, "changed")


def test_a_schedule_shows_what_became_of_its_last_ticks(visitor: Visitor, session: Session) -> None:
    session.add(schedule := jobs.Schedule(name="s", task="add", cron="0 * * * *", args={"a": 1}))
    job = shop.add.enqueue(session, a=1)
    session.commit()
    now = datetime.now(UTC)
    for hours, outcome, job_id, more in (
        (1, "enqueued", job.id, {"at": now - timedelta(hours=1) + timedelta(seconds=42)}),
        (2, "enqueued", 4711, {}),
        (3, "skipped", job.id, {}),
        (4, "skipped", 4711, {}),
        (9, "missed", None, {"until": now - timedelta(hours=5), "count": 5}),
    ):
        at = now - timedelta(hours=hours)
        ticks = {"schedule_id": schedule.id, "scheduled_for": at, "until": at, "outcome": outcome, "job_id": job_id}
        session.add(jobs.Tick(**{**ticks, **more}))
    session.add(jobs.Process(kind="clock", set_aside={f"schedule {schedule.id}": "a tick of it is refused: no way"}))
    session.commit()
    page = visitor.get(f"/schedules/{schedule.id}")
    listed = words(page)
    for said in (
        f"enqueued 42 s late #{job.id} queued",
        "#4711 deleted",
        f"skipped Job #{job.id}",
        "skipped Job #4711",
    ):
        assert said in listed
    assert "missed 5 ticks" in listed
    assert "refused: no way" in listed
    assert page.count(f'href="/ops/jobs/{job.id}"') == 2
    assert "/ops/jobs/4711" not in page


# --- as a command


@pytest.mark.slow
def test_the_command_lets_one_browser_in_once(database: Engine) -> None:
    url = database.url.render_as_string(hide_password=False)
    command = [sys.executable, "-m", "sqla_jobs", "dashboard", "tests.dashboard_shop:jobs", "--database-url", url]
    with subprocess.Popen([*command, "--port", "0"], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            address = process.stdout.readline().split()[-1]
            origin = address.partition("?")[0]
            browser = partial(httpx2.Client, follow_redirects=True, timeout=30)
            with browser() as mine, browser() as other:
                assert mine.get(origin).status_code == 403
                assert "Overview" in mine.get(address).text
                assert other.get(address).status_code == 403
                assert other.get(f"{origin}jobs").status_code == 403
                assert mine.get(f"{origin}jobs").status_code == 200
                assert mine.get(address).status_code == 200  # a reload
                assert mine.get(f"{origin}jobs", headers={"Host": "evil.example"}).status_code == 403
                assert mine.get(f"{origin}nothing").headers["X-Frame-Options"] == "DENY"
                command += ["--port", origin.rpartition(":")[2].strip("/")]
                assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 1
        finally:
            process.terminate()  # SIGINT is ignored by what a shell started in the background
            process.wait(20)


def test_the_command_can_be_for_looking_only(database: Engine) -> None:
    door = OneTimeToken("token")
    client = create_alone(jobs, door, user="ada", read_only=True).test_client()
    page = client.get("/?token=token", base_url="http://127.0.0.1:8642", follow_redirects=True)
    assert "read-only" in page.text


# --- that it is quick, and cannot hang


@pytest.mark.slow
def test_a_page_that_takes_too_long_is_given_up(visitor: Visitor, database: Engine) -> None:
    with database.begin() as connection:
        connection.execute(text("LOCK TABLE sqla_jobs"))
        began = time.monotonic()
        page = visitor.get("/jobs", 503)
        assert time.monotonic() - began >= PATIENCE
    assert "took too long" in page


def test_pages_only_read(visitor: Visitor, session: Session) -> None:
    shop.add.enqueue(session, a=1)
    session.commit()
    with reading(jobs) as (reader, _, _), pytest.raises(DBAPIError, match="read-only transaction"):
        reader.execute(insert(jobs.Queue).values(name="x"))
