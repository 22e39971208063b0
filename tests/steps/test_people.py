"""What people see of steps, sleeps and signals, and do with them: `why`, the command line, the dashboard."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any

from click.testing import CliRunner, Result
from flask import Flask
from prometheus_client import CollectorRegistry, generate_latest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from sqla_jobs.cli.main import main
from sqla_jobs.dashboard import Role, create_blueprint
from sqla_jobs.prometheus import collector
from tests import step_shop
from tests.dashboard.visitor import Visitor, words
from tests.step_shop import Approval, jobs
from tests.steps.test_signals import state
from tests.steps.test_sleeps import let_time_pass
from tests.steps.test_steps import drained, steps


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [*arguments, "--app", "tests.step_shop:jobs"])
    assert result.exit_code == code, result.output
    return result


def visitor(role: Role = Role.operator) -> Visitor:
    app = Flask("tests.step_shop")
    app.testing = True
    blueprint = create_blueprint(jobs, authorize=lambda: role, actor=lambda: "ada")
    app.register_blueprint(blueprint, url_prefix="/ops")
    return Visitor(app)


def audit(session: Session) -> list[tuple[str, str, dict[str, Any]]]:
    session.rollback()
    return [(one.action, one.subject, one.details) for one in session.scalars(select(jobs.Audit))]


def test_why_and_doctor_say_what_a_job_waits_for_while_it_keeps_a_key(session: Session) -> None:
    waiting = step_shop.approved.options(unique_key="a").enqueue(session)
    sleeping = step_shop.sleeper.options(unique_key="b").enqueue(session, seconds=30 * 86400)
    first, second = (step_shop.approved_in_order.enqueue(session, account=1) for _ in range(2))
    drained(session)
    for job in (waiting, sleeping):
        assert f"`sqla-jobs cancel {job.id}`" in jobs.why(session, job)[1]
    with jobs.worker(clock=False):
        (said,) = jobs.why(session, second)
    assert f"`sqla-jobs show {first.id}`" in said
    findings = {one["about"]: one["remedy"] for one in json.loads(run("doctor", "--json").stdout)}
    assert f"sqla-jobs show {waiting.id}" in findings[f"job {waiting.id}"]
    assert f"sqla-jobs cancel {sleeping.id}" in findings[f"job {sleeping.id}"]


def test_a_job_that_waits_without_an_end_spoils_no_view_of_all_jobs(session: Session) -> None:
    """PostgreSQL 14 to 16 cannot subtract its infinite `run_at`."""
    waiting = step_shop.approved.options(unique_key="a").enqueue(session)
    cancelled = step_shop.approved.enqueue(session)
    drained(session)
    jobs.cancel(session, cancelled)
    session.commit()
    for command in ("status", "doctor", "list", "delete --ended-before 1d --yes"):
        run(*command.split())
    registry = CollectorRegistry(auto_describe=True)
    registry.register(collector(jobs))
    assert "sqla_jobs_database_up 1.0" in generate_latest(registry).decode()
    looking = visitor()
    for page in ("/", "/jobs", "/tasks"):
        looking.get(page)
    assert [state(session, job) for job in (waiting, cancelled)] == ["scheduled", "cancelled"]


def test_the_command_line_sends_a_signal_and_shows_the_steps(session: Session) -> None:
    job = step_shop.approved.enqueue(session)
    drained(session)
    run("signal", "1", "approved", '{"by": "ada"}')
    assert state(session, job) == "queued"
    drained(session)
    assert audit(session) == [("signal", "job 1", {"signal": "approved"})]
    (step,) = json.loads(run("show", "1", "--json").stdout)["steps"]
    assert (step["name"], step["kind"], step["result"]) == ("approved", "signal", {"by": "ada"})
    run("signal", "1", "approved", code=1)
    run("signal", "1", "approved", "{by}", code=2)
    run("signal", "7", "approved", code=1)


def test_the_page_of_a_job_shows_its_steps_and_sends_the_signal_it_waits_for(session: Session) -> None:
    job = step_shop.approved.enqueue(session)
    drained(session)
    page = visitor().get("/jobs/1")
    assert "Send signal" in words(page)
    assert "approved signal without an end, begun by run 1" in words(page)
    assert re.search(r'<textarea name="payload"[^>]*></textarea>', page)
    visitor().change("/jobs/1/signal", {"signal": "approved", "payload": '{"by": "ada"}'})
    assert state(session, job) == "queued"
    drained(session)
    shown = words(visitor().get("/jobs/1"))
    assert '"by": "ada"' in shown
    assert "Send signal" not in shown
    assert audit(session) == [("signal", "job 1", {"signal": "approved"})]


def test_results_hide_sensitive_arguments(session: Session) -> None:
    step_shop.sensitive.enqueue(session, password="sesame-12345")
    drained(session)
    assert "sesame" not in run("show", "1", "--json").output
    assert "sesame" not in visitor().get("/jobs/1")


def test_erasing_a_job_removes_the_results_of_its_steps_and_its_signals(session: Session) -> None:
    erased = step_shop.erased.enqueue(session)
    lazily = step_shop.erased_in_session.enqueue(session)
    by_hand = step_shop.plain.options(max_attempts=1).enqueue(session, amount=Decimal(1))
    for job in (erased, lazily, by_hand):
        jobs.signal(session, job, "never", Approval("ada"))
    drained(session)
    run("erase", str(by_hand.id), "--yes")
    for job in (erased, lazily, by_hand):
        session.rollback()
        assert {result for _, _, result in steps(session, job)} == {None}
        assert steps(session, job) != []
    assert session.scalar(text("SELECT count(*) FROM sqla_signals")) == 0


def test_deleting_a_job_deletes_its_steps_and_signals(session: Session) -> None:
    job = step_shop.sleeper.enqueue(session, seconds=100)
    jobs.signal(session, job, "never")
    drained(session)
    run("delete", "1", "--yes")
    for table in ("sqla_jobs", "sqla_steps", "sqla_signals"):
        assert session.scalar(text(f"SELECT count(*) FROM {table}")) == 0


def test_a_retry_of_an_ended_job_keeps_its_steps(session: Session) -> None:
    job = step_shop.sleeper.enqueue(session, seconds=100)
    drained(session)
    let_time_pass(session, job, 100)
    drained(session)
    jobs.retry(session, job)
    drained(session)
    assert step_shop.calls == ["nothing", "nothing"]
