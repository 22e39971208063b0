"""The drawings of docs/architecture.md are those that `python -m tests.drawings` makes."""

from __future__ import annotations

import re

import pytest
from sqlalchemy import Engine

from sqla_jobs.rules.outcomes import RunOutcome
from tests import drawings
from tests.project.test_architecture import SOURCES

RENEW = "renew the drawings: python -m tests.drawings"


def kept(name: str) -> str:
    return drawings.FOLDER.joinpath(f"{name}.svg").read_text(encoding="utf-8")


def test_the_drawing_of_the_packages_is_what_they_import() -> None:
    assert kept("packages") == drawings.packages(), RENEW


@pytest.mark.slow
def test_the_drawing_of_a_job_is_what_its_statements_do(database: Engine) -> None:
    steps = list(drawings.way(database))
    assert kept("job") == drawings.life(steps), RENEW
    outcomes = {step.name.partition(", ")[2] for step in steps} - {""}
    assert outcomes == {*RunOutcome, "released"} - {"succeeded"}
    assert all(step.files and set(step.files) <= SOURCES.keys() for step in steps)
    started = {name for text in SOURCES.values() for name in re.findall(r'name=f?"(sqla_jobs-[\w-]+)"', text)}
    named = {name for step in steps for name in step.who if name.startswith("sqla_jobs-")}
    assert named - started == {"sqla_jobs-QUEUE-N"}
