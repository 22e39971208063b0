"""A parent that may start no threads for a while keeps its children, and starts the threads later."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from sqla_jobs import Jobs
from tests import starving_shop
from tests.conftest import ROOT
from tests.counting import states
from tests.helpers import spawning, wait_until

AS_NOBODY = ["setpriv", "--reuid=nobody", "--clear-groups"]
AS_NOBODY += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]


@pytest.fixture
def application() -> Jobs[Any]:
    return starving_shop.jobs


@pytest.mark.slow
def test_a_parent_whose_threads_cannot_be_started_starts_them_later(
    database: Engine, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STARVES_ITS_PARENT", "1")
    with Session(database) as session:
        starving_shop.feed.enqueue(session, after=2.0)
        session.commit()
    command = [
        *(AS_NOBODY if os.geteuid() == 0 else []),
        sys.executable,
        "-m",
        "sqla_jobs.worker",
    ]  # nothing limits root
    command += ["tests.starving_shop:jobs", "--database-url", database_url, "--no-clock", "--poll", "3600"]
    with spawning() as spawn:
        worker = spawn(command, ROOT, tmp_path / "worker.log")
        wait_until(lambda: states(database) == {"succeeded": 1})
        with Session(database) as session:
            starving_shop.nothing.enqueue(session)
            session.commit()
        wait_until(lambda: states(database) == {"succeeded": 2})
        worker.terminate()
        assert worker.wait(20) == 0
    assert 1 <= (tmp_path / "worker.log").read_text().count("a thread of the parent is missing") <= 4
