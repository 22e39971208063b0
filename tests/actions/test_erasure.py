"""Erasing what ended jobs hold of people: the rows stay, and nobody retries them by mistake."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Engine, Text, func, insert, or_, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from tenacity import Retrying, wait_fixed

from sqla_jobs import Changed, JobMixin, Jobs, RunContext, Unique
from sqla_jobs.cli.main import main
from sqla_jobs.rules.retention import TaskRetention
from tests.helpers import states, wait_until

DATA = "Zoe-Zimmermann"
"""What is to be gone."""


class Base(DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[str] = mapped_column(Text)


class CustomerJob(JobMixin):
    customer_id: Mapped[int | None] = mapped_column()


jobs = Jobs(Base, job_class=CustomerJob)


@jobs.task
def greet(customers: list[int], name: str = "") -> str:
    return name


@jobs.task(sensitive=["customers"])
def sign_in(customers: list[int]) -> None: ...


ERASE: TaskRetention = {"succeeded": "erase"}
again = Retrying(wait=wait_fixed(0))


@jobs.task(retention=ERASE, retry=again)
def plain(run: RunContext, name: str, fails: int = 0) -> dict[str, str]:
    run.progress(0.5, name)
    if run.attempt <= fails:
        raise ValueError(name)
    return {"name": name}


@jobs.task(retention=ERASE, retry=again)
def transactional(session: Session, run: RunContext, name: str, fails: int = 0) -> dict[str, str]:
    session.execute(insert(Customer).values(note="written"))
    return plain(run, name, fails)


@jobs.task(retention=ERASE, unique=Unique("name", per=timedelta(days=36500)))
def once(name: str) -> int:
    return 17


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
    run("erase", "--arg", "customers=17", answer="n\n", code=1)
    done = run("erase", "--arg", "customers=17", answer="y\n")
    assert "erase: 3 jobs" in done.output
    assert f"2 left alone, first: {live[0]}, {live[1]}" in done.output
    assert holding(session) == [other, *live]
    rows = session.execute(select(jobs.Job.state, jobs.Job.customer_id).where(jobs.Job.id.in_(ended))).all()
    assert sorted(rows) == [("cancelled", 17), ("failed", 17), ("succeeded", 17)]
    assert session.scalar(select(func.count()).select_from(jobs.Run)) == 6
    assert set(session.scalars(select(jobs.Run.error_type))) == {"ValueError"}


def test_the_audit_does_not_keep_what_was_looked_for(session: Session) -> None:
    add(session, "failed")
    named = ["--arg", f"name={DATA}", "--result", f"name={DATA}", "--error", DATA]
    run("erase", *named, "--task", "greet", "--actor", "ada", "--yes")
    (line,) = audit(session)
    assert (line.actor, line.action, line.subject) == ("ada", "erase many", "1 job")
    hidden = dict.fromkeys(("args", "results", "error"), "(hidden)")
    assert line.details["filter"] == {"tasks": ["greet"], **hidden}


def test_jobs_in_which_the_argument_is_sensitive_are_named_and_not_searched(session: Session) -> None:
    job_id = add(session, "failed", task="sign_in")
    assert "not searched" in run("erase", "--arg", "customers=17", "--yes").output
    assert holding(session) == [job_id]
    assert "not searched" not in run("erase", "--arg", "customers=17", "--task", "greet", "--yes").output
    assert "not searched" not in run("erase", "--task", "sign_in", "--yes").output
    assert holding(session) == []
    assert audit(session)[-1].details["filter"].keys() == {"tasks"}


@pytest.mark.parametrize("task", ["greet", "sign_in"])
def test_an_erased_job_is_shown_as_such_and_refuses_to_be_retried(session: Session, task: str) -> None:
    job_id = add(session, "failed", task=task)
    run("erase", str(job_id), "--yes")
    assert jobs.retry(session, job_id) == Changed(1, 0, (job_id,))
    assert f"1 left alone, first: {job_id}" in run("retry", "--state", "failed", "--yes").output
    (row,) = json.loads(run("list", "--json").output)
    assert (row["args"], row["state"], row["unique_key"]) == ({"(erased)": True}, "failed", None)
    assert "(erased)" in run("show", str(job_id)).output
    assert "cannot be retried" in jobs.why(session, job_id)[0]
    assert DATA not in run("status").output


def test_what_somebody_holds_or_retries_is_left_alone(session: Session, database: Engine) -> None:
    held, free = add(session, "failed", 17), add(session, "failed", 18)
    with Session(database) as other:
        other.scalar(select(jobs.Job.id).where(jobs.Job.id == held).with_for_update())
        assert f"1 left alone, first: {held}" in run("erase", "--state", "failed", "--yes").output
    assert holding(session) == [held]
    assert session.get_one(jobs.Job, free).args == {"(erased)": True}


class TestOnSuccess:
    """Tasks that declare it: the statement or the commit that stores the success erases arguments and result."""

    @pytest.fixture(params=[plain, transactional], ids=["plain", "transactional"])
    def task(self, request: pytest.FixtureRequest) -> Any:
        return request.param

    def test_nothing_of_it_is_left_but_the_rows(self, session: Session, database: Engine, task: Any) -> None:
        job = task.options(headers={"for": DATA}, unique_key=DATA).enqueue(session, name=DATA, fails=1)
        session.commit()
        assert jobs.worker(bind=database).drain() == 2
        assert holding(session) == []
        assert (job.state, job.args, job.result, job.progress) == ("succeeded", {"(erased)": True}, None, 0.5)
        assert [(run.outcome, run.error_type) for run in job.runs] == [("retried", "ValueError"), ("succeeded", None)]

    def test_a_job_that_fails_keeps_its_arguments(self, session: Session, database: Engine, task: Any) -> None:
        job = task.options(max_attempts=1).enqueue(session, name=DATA, fails=1)
        session.commit()
        jobs.worker(bind=database).drain()
        assert (job.state, job.args["name"]) == ("failed", DATA)
        jobs.retry(session, job)
        session.commit()
        jobs.worker(bind=database).drain()
        assert holding(session) == []
        assert job.state == "succeeded"

    def test_a_success_that_is_not_stored_erases_nothing(self, session: Session, database: Engine, task: Any) -> None:
        job = task.options(max_attempts=1).enqueue(session, name=DATA)
        session.commit()
        session.execute(
            text(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.outcome = 'succeeded' "
                "THEN RAISE EXCEPTION 'refused' USING ERRCODE = 'ZX001'; END IF; RETURN NEW; END $$"
            )
        )
        session.execute(text("CREATE TRIGGER refuse BEFORE INSERT ON sqla_runs FOR EACH ROW EXECUTE FUNCTION refuse()"))
        session.commit()
        jobs.worker(bind=database).drain()
        assert (job.state, job.args["name"]) == ("failed", DATA)
        assert session.scalar(select(func.count()).select_from(Customer)) == 0

    def test_a_locked_row_of_an_earlier_run_delays_no_other_job(self, session: Session, database: Engine) -> None:
        job, other = plain.enqueue(session, name=DATA), greet.enqueue(session, customers=[])
        session.flush()
        earlier = """INSERT INTO sqla_runs (id, job_id, attempt, started_at, finished_at, outcome, error)
            VALUES (nextval('sqla_runs_id_seq'), :job_id, 1, now(), now(), 'retried', :error)"""
        session.execute(text(earlier), {"job_id": job.id, "error": DATA})
        session.commit()
        with database.connect() as holder:
            holder.execute(text("SELECT FROM sqla_runs FOR UPDATE"))
            with jobs.worker(clock=False):
                wait_until(lambda: states(session) == {job.id: "running", other.id: "succeeded"})
                holder.rollback()
                wait_until(lambda: states(session)[job.id] == "succeeded")
        assert holding(session) == []

    def test_a_key_counts_until_its_period_ends(self, session: Session, database: Engine) -> None:
        job = once.enqueue(session, name=DATA)
        session.commit()
        jobs.worker(bind=database).drain()
        assert once.enqueue(session, name=DATA) is job
        assert (job.state, job.args) == ("succeeded", {"(erased)": True})
