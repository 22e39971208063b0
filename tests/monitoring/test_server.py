"""Findings of `doctor` about the server."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, delete, func, insert, select
from sqlalchemy.orm import DeclarativeBase, Session

from sqla_jobs import Jobs
from sqla_jobs.cli.main import main
from tests.helpers import wait_until


class Base(DeclarativeBase):
    pass


jobs = Jobs(Base)


@pytest.fixture
def application() -> Jobs[Any]:
    return jobs


def told(*command: str) -> dict[str, dict[str, str]]:
    """Return what a command says, by subject."""
    result = CliRunner().invoke(main, [*command, "--json", "--app", f"{__name__}:jobs"])
    assert result.exit_code == 0, result.output
    return {one["about"]: one for one in json.loads(result.stdout)}


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
