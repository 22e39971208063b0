"""Asynchronous sessions for tests."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

DRIVERS = ["psycopg", "asyncpg"]


@asynccontextmanager
async def rolled_back(url: str, driver: str) -> AsyncGenerator[AsyncSession]:
    """Yield a session whose commits are savepoints of a transaction that is rolled back."""
    engine = create_async_engine(make_url(url).set(drivername=f"postgresql+{driver}"))
    async with engine.connect() as connection, connection.begin() as transaction:
        async with AsyncSession(connection, join_transaction_mode="create_savepoint") as session:
            yield session
        await transaction.rollback()
    await engine.dispose()
