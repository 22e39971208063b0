"""Coroutine tasks in tests that pytest-asyncio runs, beside the plugin of anyio."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

TESTS = """
import asyncio
import os

import anyio
import pytest
import pytest_asyncio
from sqlalchemy import select

from sqla_jobs.testing import drain, run_job
from tests import coroutine_shop as shop
from tests.coroutine_shop import Effect, jobs
from tests.testing.sessions import DRIVERS, rolled_back

@pytest_asyncio.fixture(params=DRIVERS)
async def asession(request):
    async with rolled_back(os.environ["SHOP"], request.param) as session:
        yield session

@pytest.mark.asyncio
@pytest.mark.parametrize("n", [1, 2])
async def test_jobs_run_and_nothing_stays(asession, n):
    job = await asession.run_sync(shop.write.enqueue, n=n)
    assert (await asession.run_sync(drain, jobs)).runs == 1
    assert await run_job(asession, shop.note)(n=3) == "attempt 1"
    assert sorted(await asession.scalars(select(Effect.n))) == [n, 3]
    await asession.refresh(job)
    assert job.state == "succeeded"

@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_anyio_works_beside_it(anyio_backend):
    await anyio.sleep(0)
    async with rolled_back(os.environ["SHOP"], "psycopg") as session:
        assert await run_job(session, shop.note)(n=3) == "attempt 1"
"""


@pytest.mark.slow
def test_it_runs_them(tmp_path: Path, coroutine_url: str) -> None:
    tmp_path.joinpath("test_shop.py").write_text(TESTS)
    options = ["-q", "-p", "no:cacheprovider", "-W", "error", "-o", "asyncio_default_fixture_loop_scope=function"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "."],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SHOP": coroutine_url},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout
