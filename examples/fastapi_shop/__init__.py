"""A shop on FastAPI and asyncio: a worker in the same event loop ships and invoices the orders."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from examples.fastapi_shop.client import new_client, shared
from examples.fastapi_shop.models import jobs
from examples.fastapi_shop.views import shop


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[dict[str, Any]]:
    """Start a pool of connections, an HTTP client, and a worker that uses both. All three end with the application."""
    engine = create_async_engine(os.environ["DATABASE_URL"], pool_size=15)
    jobs.bind(engine)
    queues = {"default": 4, "carrier": 10, "http": 200}  # only `carrier` jobs hold connections of the pool
    async with new_client() as client:
        with shared(client):
            async with jobs.worker(queues, grace=20):
                yield {"sessions": async_sessionmaker(engine, expire_on_commit=False)}
    await engine.dispose()


def create_app() -> FastAPI:
    """Create the application. The application reads DATABASE_URL and CARRIER_URL when it starts."""
    app = FastAPI(title="Shop", lifespan=lifespan)
    app.include_router(shop)
    return app
