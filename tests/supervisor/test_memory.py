"""The parent of worker processes imports no application, and nothing large but SQLAlchemy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import Engine

from tests.conftest import ROOT, StartWorker
from tests.counting import children_of, worker_pids
from tests.helpers import wait_until

LARGE = ("prometheus_client", "pydantic", "croniter", "rich", "alembic", "flask", "greenlet")
IMPORTED = """
import sys
import sqla_jobs.worker, sqla_jobs.cli.main, sqla_jobs.cli.running
print(*{name.partition(".")[0] for name in sys.modules})
"""


def test_what_the_parent_imports_is_small() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTED], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "sqlalchemy" in done.stdout.split()
    assert set(done.stdout.split()).isdisjoint(LARGE)


def libraries(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells")
def test_a_parent_at_work_has_not_loaded_what_its_child_has(
    database: Engine, database_url: str, start_worker: StartWorker
) -> None:
    parent = start_worker(database_url, "--clock")
    wait_until(lambda: len(worker_pids(database)) == 1, timeout=60)
    (child,) = children_of(parent)
    assert "pydantic_core" in libraries(child)
    assert "pydantic_core" not in libraries(parent.pid)
