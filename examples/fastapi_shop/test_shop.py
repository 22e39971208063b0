"""The shop's tests: requests and the jobs that they enqueue, without a server and with one."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI
from httpx2 import ASGITransport, AsyncClient, Client
from sqlalchemy import create_engine, func, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from examples.fastapi_shop import create_app
from examples.fastapi_shop.carrier import Carrier
from examples.fastapi_shop.client import shared
from examples.fastapi_shop.models import Base, Invoice, Order, jobs
from examples.fastapi_shop.tasks import call_for_pickup, invoice, ship
from examples.fastapi_shop.views import get_session
from sqla_jobs.testing import assert_enqueued, drain, enqueued
from sqla_jobs.testing.databases import Databases
from tests.helpers import spawning, wait_until

TEA = {"item": "Tea", "address": "1 Leaf Lane", "total": "9.50"}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def url(sqla_jobs_databases: Databases) -> Iterator[str]:
    """The URL of a database with the shop's tables."""
    with sqla_jobs_databases.new(Base.metadata) as url:
        yield url


@pytest.fixture
def carrier() -> Carrier:
    return Carrier()


@pytest.fixture
async def session(url: str) -> AsyncIterator[AsyncSession]:
    engine = create_async_engine(url)
    async with AsyncSession(engine, expire_on_commit=False) as session:
        yield session
    await engine.dispose()


@pytest.fixture
async def client(session: AsyncSession) -> AsyncIterator[AsyncClient]:
    """A client that sends requests to the shop, which uses the session of the test."""
    app = create_app()
    app.dependency_overrides[get_session] = lambda: session
    async with AsyncClient(transport=ASGITransport(app), base_url="http://shop") as client:
        yield client


def client_of(carrier: Carrier) -> AsyncClient:
    return AsyncClient(transport=ASGITransport(carrier), base_url="http://carrier")


@pytest.mark.anyio
async def test_an_order_is_shipped_and_invoiced(client: AsyncClient, session: AsyncSession, carrier: Carrier) -> None:
    placed = (await client.post("/orders", json=TEA)).json()
    order = await session.get_one(Order, placed["number"])
    assert (await session.run_sync(assert_enqueued, ship, order=order)).id == placed["job"]
    async with client_of(carrier) as to_carrier:
        with shared(to_carrier):
            assert (await session.run_sync(drain, jobs)).runs == 3
    assert (await client.get(f"/orders/{order.id}")).json() == {"item": "Tea", "total": "9.50", "tracking": "P000001"}
    assert carrier.pickups == {"P000001"}
    assert (await session.scalars(select(Invoice.text))).one().endswith("9.50 EUR")


@pytest.mark.anyio
async def test_what_the_carrier_refuses_leaves_nothing_and_is_tried_again(
    client: AsyncClient, session: AsyncSession
) -> None:
    await client.post("/orders", json=TEA)
    async with AsyncClient(transport=ASGITransport(FastAPI()), base_url="http://nobody") as to_nobody:
        with shared(to_nobody):
            (error,) = (await session.run_sync(lambda own: drain(own, jobs, errors="record"))).errors
    assert "404 Not Found" in str(error)
    (job,) = await session.run_sync(enqueued, ship)
    assert (job.state, job.attempt) == ("scheduled", 1)
    assert await session.run_sync(enqueued, invoice) == []
    assert await session.run_sync(enqueued, call_for_pickup) == []


@pytest.mark.anyio
async def test_no_order_is_placed_that_cannot_be(client: AsyncClient, session: AsyncSession) -> None:
    assert (await client.post("/orders", json=TEA | {"total": "-1"})).status_code == 422
    assert (await client.get("/orders/1")).status_code == 404
    assert await session.run_sync(enqueued, ship) == []


@contextmanager
def in_a_thread(carrier: Carrier) -> Generator[str]:
    """Serve the carrier in a thread of this process. Yield the carrier's URL."""
    server = uvicorn.Server(uvicorn.Config(carrier, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started)
    (listening,) = (one for server in server.servers for one in server.sockets)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.mark.slow
def test_a_server_that_is_stopped_while_jobs_run_loses_nothing(
    url: str, carrier: Carrier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    carrier.is_open.clear()  # so all requests for parcels wait
    engine, log = create_engine(url), tmp_path / "shop.log"
    monkeypatch.setenv("DATABASE_URL", url)
    with in_a_thread(carrier) as carrier_url, spawning() as start:
        monkeypatch.setenv("CARRIER_URL", carrier_url)
        server = [sys.executable, "-m", "uvicorn", "--factory", "examples.fastapi_shop:create_app", "--port", "0"]
        shop = start(server, Path(), log)
        wait_until(lambda: "running on http" in log.read_text())
        with Client(base_url=log.read_text().partition("running on ")[2].split()[0]) as client:
            for _ in range(20):
                assert client.post("/orders", json=TEA).status_code == 201
        wait_until(lambda: len(carrier.asked) == 10)  # the concurrency of that queue
        shop.send_signal(signal.SIGTERM)
        wait_until(lambda: "Waiting for application shutdown" in log.read_text())
        carrier.is_open.set()
        assert shop.wait(20) in (0, -signal.SIGTERM)
        with engine.connect() as connection:
            counted = select(jobs.Job.state, func.count()).group_by(jobs.Job.state)
            stopped = {str(state): number for state, number in connection.execute(counted)}
        assert stopped.keys() == {"succeeded", "queued"}
        assert stopped["succeeded"] >= 10  # the running jobs have ended; the other jobs wait
        assert "each with a session" not in log.read_text()
        worker = [sys.executable, "-m", "sqla_jobs.worker", "examples.fastapi_shop.models:jobs"]
        subprocess.run([*worker, "--queues", "default=4,carrier=10,http=200", "--drain"], check=True)
    with engine.connect() as connection:
        invoiced = connection.scalars(select(Invoice.order_id).order_by(Invoice.order_id)).all()
        shipped = connection.scalars(select(Order.tracking)).all()
        assert invoiced == list(range(1, 21))
        assert set(shipped) == set(carrier.parcels.values()) == carrier.pickups
        assert connection.scalars(select(jobs.Run.outcome)).all() == ["succeeded"] * 60
    engine.dispose()
