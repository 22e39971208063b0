"""The client of the carrier's HTTP interface. Each process has one client, which keeps its connections open."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

from httpx2 import AsyncClient

_shared: ContextVar[AsyncClient | None] = ContextVar("carrier", default=None)


def new_client() -> AsyncClient:
    """Return a new client for CARRIER_URL."""
    return AsyncClient(base_url=os.environ.get("CARRIER_URL", "http://localhost:8001"), timeout=10)


_of_process = cache(new_client)


@contextmanager
def shared(client: AsyncClient) -> Generator[None]:
    """Make `carrier()` return this client during the block, both in the block and in a worker's coroutine tasks."""
    token = _shared.set(client)
    try:
        yield
    finally:
        _shared.reset(token)


def carrier() -> AsyncClient:
    """Return the client that the application shares. In a worker process, return the client of that process."""
    return _shared.get() or _of_process()
