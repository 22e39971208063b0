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

from sqla_jobs.actions.jobs import Erase
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


def test_why_says_what_a_job_sleeps_in_and_waits_for(session: Session) -> None:
    sleeping = step_shop.sleeper.enqueue(session, seconds=100)
    waiting, ever = step_shop.approved.enqueue(session, timeout=100), step_shop.approved.enqueue(session)
    drained(session)
    assert re.match(r"It sleeps in the step 'rest' until 20.* UTC, in 1 min", jobs.why(session, sleeping)[0])
    until = (
        r"It waits for the signal 'approved' until 20.* UTC, in 1 min.*; `sqla-jobs signal 2 approved JSON` sends it."
    )
    assert re.match(until, jobs.why(session, waiting)[0])
    assert jobs.why(session, ever)[0] == (
        "It waits for the signal 'approved'; `sqla-jobs signal 3 approved JSON` sends it."
    )


def test_why_and_doctor_say_what_a_job_waits_for_while_it_keeps_a_key(session: Session) -> None:
    waiting = step_shop.approved.options(unique_key="a").enqueue(session)
    sleeping = step_shop.sleeper.options(unique_key="b").enqueue(session, seconds=30 * 86400)
    first, second = (step_shop.approved_in_order.enqueue(session, account=1) for _ in range(2))
    drained(session)
    keeps = "It keeps its unique key meanwhile: an enqueue with that key makes no new job. `sqla-jobs cancel {} frees"
    assert jobs.why(session, waiting)[1].startswith(keeps.format(f"{waiting.id}`"))
    assert jobs.why(session, sleeping)[1].startswith(keeps.format(f"{sleeping.id}`"))
    with jobs.worker():
        (said,) = jobs.why(session, second)
    assert said.endswith(f" start in their order, and job {first.id} waits for the signal 'approved'.")
    findings = {one["about"]: one for one in json.loads(run("doctor", "--json").stdout)}
    found = findings[f"job {waiting.id}"]
    assert found["found"].startswith("it waits for the signal 'approved', and keeps its unique key meanwhile")
    assert found["remedy"] == (
        f"sqla-jobs signal {waiting.id} approved JSON sends it; or sqla-jobs cancel {waiting.id} frees its key"
    )
    found = findings[f"job {sleeping.id}"]
    assert found["found"].startswith("it sleeps in the step 'rest' until 20")
    assert found["remedy"] == f"sqla-jobs cancel {sleeping.id} frees its key"


def test_a_job_that_waits_without_an_end_spoils_no_view_of_all_jobs(session: Session) -> None:
    """PostgreSQL 14 to 16 cannot subtract its infinite `run_at`."""
    waiting = step_shop.approved.options(unique_key="a").enqueue(session)
    cancelled = step_shop.approved.enqueue(session)
    drained(session)
    jobs.cancel(session, cancelled)
    session.commit()
    for command in ("status", "doctor", "list", "prune --older-than 1d --yes"):
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
    assert run("signal", "1", "approved", '{"by": "ada"}').output == "job 1 has the signal approved\n"
    assert state(session, job) == "queued"
    drained(session)
    assert audit(session) == [("signal", "job 1", {"signal": "approved"})]
    (step,) = json.loads(run("show", "1", "--json").stdout)["steps"]
    assert (step["name"], step["kind"], step["result"]) == ("approved", "signal", {"by": "ada"})
    assert re.search(r"approved +signal +1 +20.*\{\"by\": \"ada\"\}", run("show", "1").output)
    assert "job 1 has ended, and receives no signal" in run("signal", "1", "approved", code=1).output
    assert "the payload is not JSON" in run("signal", "1", "approved", "{by}", code=2).output
    assert "there is no job 7" in run("signal", "7", "approved", code=1).output


def test_a_signal_that_the_job_does_not_wait_for_is_named_and_kept(session: Session) -> None:
    job = step_shop.approved.enqueue(session)
    drained(session)
    said = "job 1 waits for 'approved', not 'aproved'; it is kept until the job asks for it"
    assert run("signal", "1", "aproved", '{"by": "ada"}').output == f"{said}\n"
    assert "It has signals that it has not asked for: 'aproved'." in run("why", "1").output
    visitor().change("/jobs/1/signal", {"signal": "later", "payload": ""})
    assert "It has signals that it has not asked for: 'aproved', 'later'." in words(visitor().get("/jobs/1"))
    assert run("signal", "1", "approved", '{"by": "ada"}').output == "job 1 has the signal approved\n"
    drained(session)
    assert job.result == "ada"


def test_why_names_the_signal_at_the_beginning_of_a_chain(session: Session) -> None:
    job = step_shop.approved.enqueue(session)
    for _ in range(3):
        job = step_shop.approved.options(after=job).enqueue(session)
    drained(session)
    said = "The first job of that chain is job 1 (approved), which waits for the signal 'approved'."
    assert jobs.why(session, job) == ["It waits for job 3 (approved), which is blocked.", said]


def test_the_list_and_reschedule_say_that_a_job_waits_for_a_signal(session: Session) -> None:
    step_shop.approved.enqueue(session)
    step_shop.sleeper.enqueue(session, seconds=100)
    drained(session)
    assert run("list").output.count("waits for a signal") == 1
    said = run("reschedule", "1", "2", "--in", "1h").output
    assert "reschedule: 2 jobs\n" in said
    assert "job 1 waits for the signal 'approved': at that time it only looks for it\n" in said


def test_the_command_waits_a_second_for_a_job_that_another_session_holds(session: Session) -> None:
    job = step_shop.approved.enqueue(session)
    drained(session)
    jobs.signal(session, job, "other")
    assert "job 1 cannot be sent a signal: somebody holds" in run("signal", "1", "approved", code=1).output
    session.rollback()
    run("signal", "1", "approved", '{"by": "ada"}')


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
    assert re.search(r"attempt 1: snoozed at .*, run 1\n\nattempt 1: succeeded at .*, run 2\n", run("show", "1").output)
    shown = words(visitor().get("/jobs/1"))
    assert re.search(r"Attempt 1 succeeded ended .*, run 2 .* Attempt 1 snoozed ended .*, run 1 ", shown)
    assert '"by": "ada"' in shown
    assert "Send signal" not in shown
    assert audit(session) == [("signal", "job 1", {"signal": "approved"})]


def test_who_may_only_look_sends_no_signal(session: Session) -> None:
    job = step_shop.approved.enqueue(session)
    drained(session)
    looking = visitor(Role.viewer)
    assert "Send signal" not in words(looking.get("/jobs/1"))
    assert looking.client.post("/ops/jobs/1/signal", data={"signal": "approved"}).status_code == 403
    assert state(session, job) == "scheduled"


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
    assert Erase.name == "erase"
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
