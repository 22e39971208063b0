"""Findings of `doctor` about the server."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, delete, func, insert, select, text
from sqlalchemy.orm import DeclarativeBase, Session

from sqla_jobs import Jobs
from sqla_jobs.cli.main import main
from sqla_jobs.monitoring.examine import examine_deploy
from tests.helpers import wait_until


class Base(DeclarativeBase):
    pass


jobs = Jobs(Base)
SETTING = "idle_in_transaction_session_timeout"


@jobs.task(max_attempts=1)
def think(session: Session) -> None:
    """Run no statement for longer than the server allows in the test below."""
    session.scalar(select(1))
    time.sleep(1)
    session.scalar(select(1))


@pytest.fixture
def application() -> Jobs[Any]:
    return jobs


def set_limit(engine: Engine, name: str, value: str) -> None:
    """Set the limit of idle transactions for new connections."""
    with engine.begin() as connection:
        connection.execute(text(f"ALTER DATABASE {engine.url.database} SET {name} = '{value}'"))
    engine.dispose()


def told(*command: str) -> dict[str, dict[str, str]]:
    """Return what a command says, by subject."""
    result = CliRunner().invoke(main, [*command, "--json", "--app", f"{__name__}:jobs"])
    assert result.exit_code == 0, result.output
    return {one["about"]: one for one in json.loads(result.stdout)}


def test_a_server_that_ends_idle_transactions_sooner_than_tasks_may_take_is_warned_of(
    database: Engine,
) -> None:
    assert SETTING not in told("migrate", "--check")
    set_limit(database, SETTING, "90s")
    found = told("migrate", "--check")[SETTING]
    assert (found["verdict"], found["found"]) == ("warning", "1 min 30 s, and task think may take longer")
    assert f"connect_args={{'options': '-c {SETTING}=0'}}" in found["remedy"]
    set_limit(database, SETTING, "2h")
    assert SETTING not in told("migrate", "--check")


def test_tasks_with_a_shorter_timeout_are_safe(database: Engine) -> None:
    class Other(DeclarativeBase):
        pass

    patient: Jobs[Any] = Jobs(Other)
    patient.task(timeout=20)(think.__wrapped__)
    patient.bind(database)
    with patient._binding().transaction() as session:
        session.execute(text(f"SET LOCAL {SETTING} = '30s'"))
        assert not any(one.about == SETTING for one in examine_deploy(session, patient))


@pytest.mark.slow
def test_a_table_full_of_dead_rows_is_told_with_the_transaction_to_end_first(database: Engine) -> None:
    with Session(database.execution_options(isolation_level="REPEATABLE READ")) as old:
        pid = old.scalar(select(func.pg_backend_pid()).where(select(jobs.Job.id).exists().is_(False)))
        with Session(database) as session:
            session.execute(insert(jobs.Job), [{"task": "think", "args": {}, "state": "cancelled"}] * 11_000)
            session.commit()
            session.execute(delete(jobs.Job))
            session.commit()
        about = "table sqla_jobs"
        wait_until(lambda: f"SELECT pg_terminate_backend({pid}, 5000); then VACUUM" in told("doctor")[about]["remedy"])
    wait_until(lambda: told("doctor")[about]["remedy"] == "VACUUM sqla_jobs")
