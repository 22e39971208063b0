"""Erasing what ended jobs hold of people: the rows stay, and nobody retries them by mistake."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner, Result
from flask import Flask
from sqlalchemy import Engine, func, insert, or_, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_jobs import JobMixin, Jobs
from sqla_jobs.cli.main import main
from sqla_jobs.dashboard import allow_everyone, create_blueprint
from sqla_jobs.errors import JobsError
from sqla_jobs.models.types import JobState

DATA = "Zoe-Zimmermann"
"""What is to be gone."""


class Base(DeclarativeBase):
    pass


class CustomerJob(JobMixin):
    customer_id: Mapped[int | None] = mapped_column()


jobs = Jobs(Base, job_class=CustomerJob)


@jobs.task
def greet(customers: list[int], name: str = "") -> str:
    return name


@jobs.task(sensitive=["customers"])
def sign_in(customers: list[int]) -> None: ...


@pytest.fixture
def application() -> Jobs[Any]:
    return jobs


def add(session: Session, state: str, customer: int = 17, **values: Any) -> int:
    """A job of that customer's with a run, which holds their data wherever a job can."""
    lease = {"process_id": func.gen_random_uuid(), "current_run_id": 1} if state == "running" else {}
    ended = {} if state in ("queued", "running") else {"finished_at": func.now()}
    row = {"task": "greet", "args": {"customers": [1, customer], "name": DATA}, "state": state, "customer_id": customer}
    row |= {"unique_key": f"{DATA} {state} {customer}", "progress_message": DATA, "headers": {"for": DATA}}
    row |= {**lease, **ended, **values}
    job_id: int = session.scalar(insert(jobs.Job).values(row).returning(jobs.Job.id)) or 0
    texts = {"error": DATA, "traceback": DATA, "result": {"name": DATA}, "error_type": "ValueError"}
    session.execute(insert(jobs.Run).values(job_id=job_id, attempt=1, outcome="failed", **texts))
    session.commit()
    return job_id


def run(*arguments: str, code: int = 0, answer: str = "") -> Result:
    command = [*arguments, "--app", "tests.actions.test_erasure:jobs"]
    result = CliRunner().invoke(main, command, input=answer)
    assert result.exit_code == code, result.output
    return result


def holding(session: Session) -> list[int]:
    """The jobs in which, or in whose runs, the data stands still."""
    session.rollback()
    job, run = jobs.Job, jobs.Run
    of_job = text("sqla_jobs::text LIKE :data").bindparams(data=f"%{DATA}%")
    of_run = text("sqla_runs::text LIKE :data").bindparams(data=f"%{DATA}%")
    in_runs = select(run.job_id).where(of_run)
    return list(session.scalars(select(job.id).where(or_(of_job, job.id.in_(in_runs))).order_by(job.id)))


def audit(session: Session) -> list[Any]:
    session.rollback()
    return list(session.scalars(select(jobs.Audit).order_by(jobs.Audit.id)))


def test_jobs_of_a_customer_are_erased_and_their_rows_stay(session: Session) -> None:
    ended = [add(session, state) for state in ("succeeded", "failed", "cancelled")]
    other, live = add(session, "failed", 18), [add(session, state) for state in ("queued", "running")]
    done = run("erase", "--arg", "customers=17", answer="y\n")
    assert "erase 1 succeeded, 1 failed, 1 cancelled jobs?" in done.output
    assert "erase: 3 jobs" in done.output
    assert "1 queued, 1 running jobs left alone: erase them once they have ended" in done.output
    assert holding(session) == [other, *live]
    rows = session.execute(select(jobs.Job.state, jobs.Job.customer_id).where(jobs.Job.id.in_(ended))).all()
    assert sorted(rows) == [("cancelled", 17), ("failed", 17), ("succeeded", 17)]
    assert session.scalar(select(func.count()).select_from(jobs.Run)) == 6
    assert set(session.scalars(select(jobs.Run.error_type))) == {"ValueError"}


def test_they_are_named_by_results_too_and_by_ids(session: Session) -> None:
    first, second, live = add(session, "failed"), add(session, "failed"), add(session, "queued")
    done = run("erase", str(first), str(live), "4711", "--yes", code=1)
    assert "erase: 1 job\n" in done.output
    assert f"job {live} is queued\nthere is no job 4711" in done.output
    assert holding(session) == [second, live]
    run("erase", "--result", f"name={DATA}", "--yes")
    assert holding(session) == [live]


def test_without_an_answer_and_without_a_filter_nothing_is_erased(session: Session) -> None:
    job_id = add(session, "failed")
    run("erase", "--arg", "customers=17", code=1, answer="n\n")
    assert "no jobs are selected" in run("erase", code=2).output
    assert holding(session) == [job_id]
    run("erase", "--all", "--yes")
    assert holding(session) == []


def test_the_audit_does_not_keep_what_was_looked_for(session: Session) -> None:
    add(session, "failed")
    named = ["--arg", f"name={DATA}", "--result", f"name={DATA}", "--error", DATA]
    run("erase", *named, "--task", "greet", "--actor", "ada", "--yes")
    (line,) = audit(session)
    assert (line.actor, line.action, line.subject) == ("ada", "erase many", "1 job")
    hidden = dict.fromkeys(("args", "results", "error"), "(hidden)")
    assert line.details["filter"] == {"tasks": ["greet"], "states": ["succeeded", "failed", "cancelled"], **hidden}


def test_jobs_in_which_the_argument_is_sensitive_are_named_and_not_searched(session: Session) -> None:
    job_id = add(session, "failed", task="sign_in")
    done = run("erase", "--arg", "customers=17", "--yes")
    assert "sensitive arguments of sign_in, and what may repeat them, are not searched" in done.output
    assert holding(session) == [job_id]
    assert "not searched" not in run("erase", "--arg", "customers=17", "--task", "greet", "--yes").output
    assert "not searched" not in run("erase", "--task", "sign_in", "--yes").output
    assert holding(session) == []
    assert audit(session)[-1].details["filter"].keys() == {"tasks", "states"}


@pytest.mark.parametrize("task", ["greet", "sign_in"])
def test_an_erased_job_is_shown_as_such_and_refuses_to_be_retried(session: Session, task: str) -> None:
    job_id = add(session, "failed", task=task)
    run("erase", str(job_id), "--yes")
    with pytest.raises(JobsError, match=f"job {job_id} cannot be retried: its arguments were erased"):
        jobs.retry(session, job_id)
    told = run("retry", str(job_id), "--yes", code=1).output
    assert f"job {job_id} cannot be retried: its arguments were erased; enqueue a new job instead\n" in told
    assert "1 job left alone: its arguments were erased" in run("retry", "--state", "failed", "--yes").output
    with pytest.raises(IntegrityError, match="sqla_jobs_args_check"):
        session.execute(text("UPDATE sqla_jobs SET state = 'queued'"))
    session.rollback()
    (row,) = json.loads(run("list", "--json").output)
    assert (row["args"], row["state"], row["unique_key"]) == ("(erased)", "failed", None)
    assert "(erased)" in run("show", str(job_id)).output
    assert DATA not in run("status").output


def test_what_somebody_holds_or_retries_is_left_alone(session: Session, database: Engine) -> None:
    held, free = add(session, "failed", 17), add(session, "failed", 18)
    with Session(database) as other:
        other.scalar(select(jobs.Job.id).where(jobs.Job.id == held).with_for_update())
        done = run("erase", "--state", "failed", "--yes")
        assert "erase: 1 job\n" in done.output
        assert "1 job left alone: somebody holds or has changed it" in done.output
    assert holding(session) == [held]
    assert str(session.get_one(jobs.Job, free).args) == "(erased)"


def test_the_dashboard_erases_many(session: Session) -> None:
    job_id, live = add(session, "failed"), add(session, "queued")
    app = Flask("erasing")
    app.config.update(SECRET_KEY="a key for tests", TESTING=True)
    app.register_blueprint(create_blueprint(jobs, authorize=allow_everyone), url_prefix="/ops")
    client = app.test_client()
    page = client.get("/ops/jobs?args=customers=17").text
    token = page.partition('name="csrf_token" value="')[2].partition('"')[0]
    assert f'data-id="{job_id}"' in page
    assert 'value="erase"' in page
    assert 'value="erase"' not in client.get("/ops/jobs?state=queued").text
    fields = {"csrf_token": token, "action": "erase", "all": "1", "args": "customers=17", "result": f"name={DATA}"}
    asked = client.post("/ops/jobs/change", data=fields).text
    assert "Erase 1 failed job?" in asked
    assert "Sensitive arguments of sign_in, and what may repeat them, are not searched." in asked
    assert client.post("/ops/jobs/change/run", data={**fields, "until": str(live)}).status_code == 200
    assert holding(session) == [live]
    (line,) = audit(session)
    ended = ["succeeded", "failed", "cancelled"]
    assert line.details["filter"] == {"states": ended, "args": "(hidden)", "results": "(hidden)"}
    page = client.get(f"/ops/jobs/{job_id}").text
    assert "This job was erased." in page
    assert f"/ops/jobs/{job_id}/retry" not in page
    assert "(erased)" in client.get("/ops/jobs?state=failed").text
    refused = client.post(f"/ops/jobs/{job_id}/retry", data={"csrf_token": token})
    assert refused.status_code == 409
    assert "its arguments were erased" in refused.text
    assert client.get("/ops/").status_code == 200


def test_every_batch_of_many_is_erased(session: Session) -> None:
    rows = [{"task": "greet", "args": {"customers": [n % 2]}, "state": JobState.failed} for n in range(2400)]
    session.execute(insert(jobs.Job), rows)
    session.commit()
    assert "erase: 1,200 jobs\n" in run("erase", "--arg", "customers=1", "--yes").output
    assert [line.subject for line in audit(session)] == ["500 jobs", "500 jobs", "200 jobs"]


def test_a_text_is_found_wherever_it_stands_but_not_in_secrets(session: Session) -> None:
    job_id = add(session, "failed")
    secret = add(session, "failed", task="sign_in", args={"customers": [DATA]})
    session.add(jobs.Schedule(name="greetings", task="greet", cron="@daily", args={"name": DATA}))
    session.commit()
    run("pause", "--task", "greet", "--reason", f"not {DATA}")
    done = run("find", DATA.upper(), "--json")
    found = {(one["where"], one["job_id"]) for one in json.JSONDecoder().raw_decode(done.stdout)[0]}
    assert found >= {(where, job_id) for where in ("arguments", "headers", "unique key", "progress", "result", "error")}
    assert {("schedule", None), ("audit", None)} <= found
    assert secret not in {job for where, job in found if where != "headers"}
    told = run("find", DATA)
    assert "greetings" in told.output
    assert "are not searched" in told.output
    assert "give the text to search for" in run("find", " ", code=2).output
