"""Secrets in arguments: planted in every place where they might come out again, and looked for everywhere."""

from __future__ import annotations

import base64
import html
import json
import logging
import re
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography.fernet import Fernet
from flask import Flask
from flask.testing import FlaskClient
from pydantic import BaseModel, Field
from sqlalchemy import CheckConstraint, Engine, Text, insert, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from typing_extensions import TypedDict

from sqla_jobs import Cancel, JobMixin, Jobs, RunContext
from sqla_jobs.cli.main import main
from sqla_jobs.dashboard import allow_everyone, create_blueprint
from sqla_jobs.encryption import Encrypted
from sqla_jobs.execution.executor import Executor
from sqla_jobs.execution.held_job import Attempt
from sqla_jobs.execution.interrupt import Body
from sqla_jobs.queries import Queries, processes
from sqla_jobs.rules.redaction import HIDDEN, WITHHELD
from tests.rules.test_redaction import TEXTS

BLOBS = {"no UTF-8": b"Zk19-no-text\xff\xfe\x00\x80\n'raw'"}


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "account"
    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(Text, unique=True)
    note: Mapped[str | None] = mapped_column(Text)
    __table_args__ = (CheckConstraint("note <> 'no'", name="note_is_not_no"),)


class MyJob(JobMixin):
    memo: Mapped[str | None] = mapped_column(Text)


jobs = Jobs(Base, job_class=MyJob)


@dataclass
class Credentials:
    user: str
    secret: Any


def _reraised(raise_it: Callable[[], object]) -> None:
    try:
        raise_it()
    except Exception as error:
        raise RuntimeError(f"could not go on: {error}") from error


def _raise(error: Exception) -> None:
    raise error


def _pending(session: Session, secret: Any) -> object:
    """Goes on after a flush that failed, without a rollback."""
    session.add(Account(key=_storable(secret), note="no"))
    with suppress(DBAPIError):
        session.flush()
    return session.scalar(text("SELECT 1"))


def _noted(secret: Any) -> Exception:
    error = ValueError("see the notes")
    error.add_note(f"it was {secret}")
    error.add_note(f"or {secret!r}")
    return error


def _chain(secret: Any) -> None:
    try:
        raise ValueError(secret)
    except ValueError:
        try:
            raise KeyError(secret)
        except KeyError as error:
            raise LookupError(f"neither: {error!r}") from None


RAISED: dict[str, Callable[[Session, Any], object]] = {
    "itself": lambda session, secret: _raise(ValueError("no", secret, 5)),
    "repr": lambda session, secret: _raise(ValueError(f"not {secret!r} of {Credentials('ada', secret)!r}")),
    "json": lambda session, secret: _raise(ValueError(json.dumps({"a": [str(secret), json.dumps(str(secret))]}))),
    "chain": lambda session, secret: _chain(secret),
    "group": lambda session, secret: _raise(
        ExceptionGroup("all", [ValueError(secret), ExceptionGroup("inner", [_noted(secret)])])
    ),
    "parameters": lambda session, secret: session.execute(text("SELECT no_column, :x"), {"x": str(secret)}),
    "unique": lambda session, secret: session.execute(insert(Account), [{"key": _storable(secret)}] * 2),
    "reraised": lambda session, secret: _reraised(
        lambda: session.execute(insert(Account), {"key": _storable(secret), "note": "no"})
    ),
    "pending": _pending,
    "psycopg": lambda session, secret: session.connection().connection.cursor().execute(
        "INSERT INTO account (key, note) VALUES (%s, 'no')", [_storable(secret)]
    ),
    "cancel": lambda session, secret: _raise(Cancel(f"since {secret} and {secret!r}")),
    "unstorable": lambda session, secret: {"result": object(), "secret": secret},
}  # fmt: skip


def _storable(secret: Any) -> str:
    return str(secret).replace("\x00", "")[:2000]


SENSITIVE = ["secret", "blob", "number", "deep"]


@jobs.task(sensitive=SENSITIVE, max_attempts=1)
def leak(
    session: Session,
    run: RunContext,
    way: str,
    secret: str = "",
    blob: bytes = b"",
    number: int = 0,
    deep: dict[str, Any] | None = None,
) -> object:
    value: Any = secret or blob or number or deep
    run.progress(0.5, f"with {value} and {value!r}")
    return RAISED[way](session, value)


@jobs.task(sensitive=SENSITIVE[:3], max_attempts=1)
def give_back(run: RunContext, secret: str = "", blob: bytes = b"", number: int = 0, url: str = "") -> Any:
    value: Any = secret or blob or number
    run.progress(0.5, f"with {value!r}")
    return {"same": value, f"key {value}": [json.dumps(str(value)), f"in {value!r}"], "n": {"x": value}}


@pytest.fixture
def application() -> Jobs[Any]:
    return jobs


@pytest.fixture
def session(database: Engine) -> Iterator[Session]:
    """One whose rows can be read after a commit without asking the database."""
    with Session(database, expire_on_commit=False) as session:
        yield session


def pieces(secret: Any) -> list[str]:
    """What would betray it; of base64 the middle."""
    data = secret if isinstance(secret, bytes) else str(secret).encode()
    said = secret.decode("utf-8", "replace") if isinstance(secret, bytes) else str(secret)
    core = said.strip()
    found = [
        core,
        repr(said)[1:-1],
        json.dumps(said)[1:-1],
        repr(data)[2:-1],
        data.hex(),
        base64.b64encode(data[:30]).decode()[:-4],
    ]
    if len(core) > 28:
        found += [core[:12], core[-12:], core[:150], core[-150:]]
    if (at := said.find("Zk")) >= 0 and len(said) < 1000:
        found.append(said[at : at + 4])
    return [piece for piece in found if len(piece) >= 3]


def check(output: str, secret: Any, where: object) -> None:
    plain = html.unescape(output)
    for piece in pieces(secret):
        for shown in (output, plain):
            at = shown.find(piece)
            assert at < 0, f"{where} shows {piece!r:.60}: …{shown[max(0, at - 100) : at + 200]!r}…"


def visitor() -> FlaskClient:
    """Of the dashboard, below /ops."""
    app = Flask("tests.execution.test_secrets")
    app.testing = True
    app.register_blueprint(create_blueprint(jobs, authorize=allow_everyone), url_prefix="/ops")
    return app.test_client()


def outputs(session: Session, ids: list[int]) -> Iterator[tuple[str, str]]:
    """All that anybody can see of these jobs, and where."""
    client = visitor()
    schedules = session.scalars(select(jobs.Schedule.id)).all()
    paths = ["", "jobs", "jobs?state=failed", "jobs?task=leak", "schedules", "audit", *(f"jobs/{n}" for n in ids)]
    paths += [path for n in schedules for path in (f"schedules/{n}", f"schedules/{n}/edit")]
    for path in paths:
        response = client.get(f"/ops/{path}")
        assert response.status_code == 200, response.text
        yield path, response.text
    commands = [["status"], ["list", "--limit", "500"], ["schedule", "list"], ["doctor"]] + [
        ["show", str(n)] for n in ids
    ]
    for command in commands:
        for options in ([], ["--json"]):
            done = CliRunner().invoke(main, [*command, *options, "--app", "tests.execution.test_secrets:jobs"])
            assert done.exit_code in (0, 1), done.output
            assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
            yield " ".join([*command, *options]), done.output


def stored(session: Session) -> Iterator[tuple[str, str]]:
    """What is in the tables beside arguments and results."""
    session.rollback()
    for run in session.scalars(select(jobs.Run)):
        yield f"run of job {run.job_id}", f"{run.error_type} {run.error} {run.traceback}"
    for job_id, message in session.execute(select(jobs.Job.id, jobs.Job.progress_message)):
        yield f"progress of job {job_id}", str(message)
    for line in session.scalars(select(jobs.Audit)):
        yield "audit", f"{line.subject} {line.details}"


@pytest.mark.parametrize("name", ["PEM", "JSON", "no UTF-8"])
@pytest.mark.slow
def test_a_secret_comes_out_nowhere_however_the_task_raises(
    session: Session, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What is stored is looked through for each way, what is shown for a third of them, others with each secret."""
    caplog.set_level(logging.DEBUG, "sqla_jobs")
    given: dict[str, Any] = {"blob": BLOBS[name]} if name in BLOBS else {"secret": TEXTS[name]}
    (secret,) = given.values()
    made = [leak.enqueue(session, way=way, **given) for way in RAISED]
    made.append(give_back.options(columns={"memo": f"memo {secret!r}"}).enqueue(session, **given))
    key = f"key of {secret!r}"[:400]
    made.append(give_back.options(delay=3600, unique_key=key).enqueue(session, url=f"https://x/?t={secret!r}", **given))
    args = json.loads(leak._declaration.codec.encode_without_rows({"way": f"by {secret!r}", **given}))
    session.add(
        jobs.Schedule(
            name="nightly", task="leak", cron="0 2 * * *", args=args, enabled=False, disabled_reason=f"{secret!r}"
        )
    )
    session.commit()
    jobs.worker().drain()
    session.commit()
    outcomes = session.scalars(select(jobs.Run.outcome).where(jobs.Run.job_id.in_([job.id for job in made])))
    assert {str(one) for one in outcomes} == {"failed", "cancelled", "succeeded"}
    for where, output in stored(session):
        check(output, secret, where)
    turn = len(name) % 3
    for where, output in outputs(session, [job.id for job in (*made[turn:-2:3], *made[-2:])]):
        check(output, secret, where)
    check(caplog.text, secret, "the log")


class Address(TypedDict):
    town_name: str


class Patient(BaseModel):
    born_on: date
    pauses: dict[str, timedelta]
    home: Address
    by_account: dict[str, Credentials]
    number: str = Field(serialization_alias="insuranceNumber", default="")


@pytest.mark.parametrize("is_encrypted", [False, True])
@pytest.mark.slow
def test_keys_and_times_are_secret_and_names_of_fields_are_not(
    session: Session, is_encrypted: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQLA_JOBS_KEYS", Fernet.generate_key().decode())

    def examine(run: RunContext, patient: Patient, scores: dict[str, dict[str, int]]) -> None:
        said = [f"{patient.model_dump()!r}", str(patient.pauses["Zk-pause"]), f"{patient.born_on!r}", f"{scores}"]
        run.progress(0.5, "\n".join(said))
        raise LookupError("\n".join(["town_name user born_on insuranceNumber", *said]))

    if is_encrypted:
        secret_types = {"patient": Encrypted[Patient], "scores": Encrypted[dict[str, dict[str, int]]]}
        monkeypatch.setattr(examine, "__annotations__", examine.__annotations__ | secret_types)
        task = jobs.task(max_attempts=1)(examine)
    else:
        task = jobs.task(max_attempts=1, sensitive=["patient", "scores"])(examine)
    caplog.set_level(logging.DEBUG, "sqla_jobs")
    patient = Patient(
        born_on=date(1990, 3, 7),
        pauses={"Zk-pause": timedelta(days=1)},
        home={"town_name": "Zk-town"},
        by_account={"Zk-account": Credentials("ada", 1)},
    )
    job = task.enqueue(session, patient=patient, scores={"Zk-exam": {"Zk-question": 5}})
    session.commit()
    jobs.worker().drain()
    session.commit()
    shown = [*stored(session), *outputs(session, [job.id]), ("the log", caplog.text)]
    for where, output in shown:
        for secret in ("Zk-", "1990, 3, 7", "1 day, 0:00:00", "timedelta(days=1)"):
            assert secret not in html.unescape(output), where
    assert "town_name user born_on insuranceNumber" in dict(shown)[f"run of job {job.id}"]


@pytest.mark.slow
def test_a_result_is_kept_as_it_was_returned_and_shown_without_secrets(session: Session) -> None:
    job = give_back.enqueue(session, secret="Zk-in-the-result")
    session.commit()
    jobs.worker().drain()
    session.commit()
    run = session.scalars(select(jobs.Run).where(jobs.Run.job_id == job.id)).one()
    assert run.result["same"] == "Zk-in-the-result"
    for where, output in outputs(session, [job.id]):
        assert "Zk-in-the-result" not in html.unescape(output), where
    shown = CliRunner().invoke(main, ["show", str(job.id), "--json", "--app", "tests.execution.test_secrets:jobs"])
    (only,) = json.loads(shown.output)["runs"]
    assert (only["result"]["same"], only["result"]["n"]) == (WITHHELD, {"x": WITHHELD})
    assert WITHHELD in only["result"]


@pytest.mark.slow
def test_what_the_database_says_of_a_row_is_kept_for_no_task(session: Session) -> None:
    @jobs.task(max_attempts=1)
    def plain(session: Session, way: str, value: str) -> object:
        return RAISED[way](session, value)

    made = {
        way: plain.enqueue(session, way=way, value="personal data")
        for way in ("parameters", "unique", "reraised", "psycopg", "pending")
    }
    session.commit()
    jobs.worker().drain()
    session.commit()
    for where, output in stored(session):
        assert "personal data" not in output, where
    told = {way: session.scalars(select(jobs.Run).where(jobs.Run.job_id == job.id)).one() for way, job in made.items()}
    assert "account_key_key" in (told["unique"].error or "")
    assert "violates check constraint" in (told["reraised"].error or "")
    assert (told["reraised"].traceback or "").count("violates check constraint") >= 3
    assert "note_is_not_no" in (told["psycopg"].error or "")
    assert told["pending"].error_type == "sqlalchemy.exc.PendingRollbackError"
    assert "note_is_not_no" in (told["pending"].error or "")
    for run in told.values():
        assert "DETAIL" not in f"{run.error}{run.traceback}"
        assert "[parameters" not in f"{run.error}{run.traceback}"


def test_what_a_context_around_a_job_raises_is_logged_without_secrets(
    session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    @contextmanager
    def context(run: object) -> Generator[None]:
        yield
        raise ValueError("teardown of Zk-surroundings")

    give_back.enqueue(session, secret="Zk-surroundings")
    session.commit()
    never: Any = None
    executor = Executor(jobs.tasks, never, context=context)
    with session.begin():
        process_id = processes.register(session.connection(), jobs._models, kind="worker", queues={}, lease=30)
        (claimed,) = Queries(jobs._models).claim(session, process_id, {"default": 1}, list(jobs.tasks))
    executor.execute(Attempt(claimed, time.monotonic()), Body())
    assert "failed on exit" in caplog.text
    assert "Zk-surroundings" not in caplog.text


# --- what cannot be searched for


def found(*arguments: str) -> list[Any]:
    done = CliRunner().invoke(main, ["list", "--json", *arguments, "--app", "tests.execution.test_secrets:jobs"])
    assert done.exit_code == 0, done.output
    listed: list[Any] = json.loads(done.output)
    return listed


def test_no_filter_confirms_a_guess(session: Session) -> None:
    give_back.options(delay=60, unique_key="login Zk-guess", columns={"memo": "m"}).enqueue(session, secret="Zk-guess")
    other = jobs.Job(task="unknown", args={"secret": "Zk-guess"}, unique_key="another")
    session.add(other)
    session.commit()
    client = visitor()
    for query in ({"key": "login Zk-guess"}, {"arg": "secret=Zk-guess"}, {"arg": '{"secret":"Zk-guess"}'}):
        page = client.get("/ops/jobs", query_string=query).text
        assert ">give_back" not in page.partition("<tbody")[2]
    assert f'data-id="{other.id}"' in client.get("/ops/jobs?key=another").text
    assert [row["task"] for row in found("--arg", "secret=Zk-guess")] == ["unknown"]
    nested = jobs.Job(task="give_back", args={"secret": {"pin": "Zk-inner"}, "to": {"name": "Ann"}}, state="failed")
    listed = jobs.Job(task="give_back", args=[{"pin": "Zk-inner"}], state="failed", finished_at=datetime.now(UTC))
    session.add_all([nested, listed])
    session.flush()
    session.add(jobs.Run(job_id=nested.id, attempt=1, outcome="succeeded", result={"was": "Zk-inner"}))
    session.add(jobs.Run(job_id=other.id, attempt=1, outcome="succeeded", result={"was": "Zk-inner"}))
    session.commit()
    assert found("--arg", "pin=Zk-inner") == []
    assert [row["id"] for row in found("--arg", "name=Ann")] == [nested.id]
    assert [row["id"] for row in found("--result", "was=Zk-inner")] == [other.id]
    results = client.get("/ops/jobs?result=was=Zk-inner").text
    assert re.findall(r'data-id="(\d+)"', results) == [str(other.id)]
    page = client.get("/ops/jobs/1").text
    assert WITHHELD in page
    assert "?key=" not in page


def test_a_change_of_many_leaves_no_guess_in_the_audit(session: Session) -> None:
    other = jobs.Job(task="unknown", args={"secret": "Zk-typed"}, state="queued")
    session.add(other)
    session.commit()
    fields = {"action": "cancel", "all": "1", "arg": "secret=Zk-typed", "until": str(other.id)}
    assert visitor().post("/ops/jobs/change/run", data=fields).status_code == 200
    (line,) = session.scalars(select(jobs.Audit)).all()
    assert line.details["filter"]["args"] == HIDDEN
    assert line.details["changed"] == 1


def test_what_a_form_of_a_schedule_holds_back_stays_as_it_is(session: Session) -> None:
    args = {"way": "by Zk-held-back", "secret": "Zk-held-back"}
    session.add(schedule := jobs.Schedule(name="s", task="leak", cron="* * * * *", args=args))
    session.commit()
    client = visitor()
    page = client.get(f"/ops/schedules/{schedule.id}/edit").text
    assert WITHHELD not in page
    fields = {"task": "leak", "cron": "1 * * * *", "args": '{"number": 7}'}
    fields |= {"catch_up": "latest", "overlap": "allow"}
    assert client.post(f"/ops/schedules/{schedule.id}/edit", data=fields).status_code == 303
    session.refresh(schedule)
    assert schedule.args == {**args, "number": 7}
