"""The client of the carrier's HTTP interface: one a process, since it keeps connections."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

from httpx2 import AsyncClient

_shared: ContextVar[AsyncClient | None] = ContextVar("carrier", default=None)


def new_client() -> AsyncClient:
    """One for CARRIER_URL."""
    return AsyncClient(base_url=os.environ.get("CARRIER_URL", "http://localhost:8001"), timeout=10)


_of_process = cache(new_client)


@contextmanager
def shared(client: AsyncClient) -> Generator[None]:
    """Inside, `carrier()` is this client: in the code that stands here, and in coroutine tasks of a worker."""
    token = _shared.set(client)
    try:
        yield
    finally:
        _shared.reset(token)


def carrier() -> AsyncClient:
    """The client of the application whose worker this is; in a worker process, one of its own."""
    return _shared.get() or _of_process()
