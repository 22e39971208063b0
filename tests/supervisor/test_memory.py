"""The parent of worker processes imports no application, and nothing large but SQLAlchemy."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import ROOT

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
