"""The programs of docs/following.md."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from sqlalchemy import Engine

from tests.conftest import ROOT
from tests.project.pages import blocks, run_block

PAGE = blocks(ROOT / "docs/following.md", "python")


@pytest.fixture
def reports(tmp_path: Path, database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the tasks of the page and its server, and a database with the tables."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.syspath_prepend(tmp_path)
    own = (
        "from sqlalchemy.orm import DeclarativeBase\nfrom sqla_jobs import Jobs\n\n\nclass Base(DeclarativeBase): ...\n"
    )
    tasks = PAGE[0].code.partition("\njobs.bind(")[0].replace("from shop import jobs", f"{own}\n\njobs = Jobs(Base)\n")
    tmp_path.joinpath("reports.py").write_text(tasks)
    for block in PAGE[1:]:
        tmp_path.joinpath(block.code.splitlines()[0].removeprefix("# ")).write_text(block.code)
    import_module("reports").Base.metadata.create_all(engine)
    yield tmp_path
    for name in ("reports", "reports_web"):
        if (program := sys.modules.pop(name, None)) is not None and hasattr(program, "engine"):
            program.engine.dispose()


def states(said: str) -> list[str]:
    return [json.loads(line.removeprefix("data: "))["state"] for line in said.splitlines() if line]


@pytest.mark.slow
def test_the_server_of_the_page_tells_how_a_report_goes(reports: Path) -> None:
    from fastapi.testclient import TestClient

    web: ModuleType = import_module("reports_web")
    with TestClient(web.app) as client, web.jobs.worker():
        ordered = client.post("/reports", params={"month": "July"})
        assert ordered.status_code == 202
        job = ordered.json()["job"]
        assert states(client.get(f"/reports/{job}/events").text)[-1] == "succeeded"
        assert states(client.get("/reports/7777/events").text) == []


def test_the_first_block_of_the_page_runs_as_printed(page: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    run_block(PAGE[0], page)
    assert capsys.readouterr().out.splitlines()[-1].startswith("succeeded 1.0")
