"""An application whose tenants are in two databases."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Engine, Text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.ext.horizontal_shard import ShardedSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_jobs import ConcurrencyLimit, JobMixin, Jobs, Unique

T = TypeVar("T")


class Base(DeclarativeBase):
    pass


class MyJob(JobMixin):
    tenant: Mapped[str | None] = mapped_column(Text)


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[str]


jobs = Jobs(Base, job_class=MyJob)
SHARD_OF = {"ada": "eu", "eve": "eu", "bob": "us"}


@jobs.task
def send(email: str) -> None: ...


@jobs.task
def settle(session: Session, orders: list[Order]) -> None: ...


@jobs.task(unique=Unique("account"))
def bill(account: int, note: str = "") -> None: ...


@jobs.task(unique=Unique("account", on_conflict="replace", max_delay=None))
def index(account: int, note: str = "") -> None: ...


@jobs.task(unique=Unique("account", on_conflict="replace", max_delay=None))
def sync(account: int, note: str = "") -> None: ...


@jobs.task(limits=ConcurrencyLimit(1, key="account", ordered=True))
def export(account: int) -> None: ...


def choose(mapper: Any, instance: Any, clause: Any = None) -> str:
    """The application decides by the tenant of its rows and of its jobs. It knows nothing about batches."""
    return SHARD_OF[instance.tenant]


def identify(mapper: Any, primary_key: Any, *, lazy_loaded_from: Any, **others: Any) -> list[str]:
    return [lazy_loaded_from.identity_token] if lazy_loaded_from else ["eu", "us"]


def execute(context: Any) -> list[str]:
    return [context.lazy_loaded_from.identity_token] if context.is_select and context.lazy_loaded_from else ["eu", "us"]


CHOOSERS: dict[str, Any] = {
    "shard_chooser": choose,
    "identity_chooser": identify,
    "execute_chooser": execute,
}


@dataclass(frozen=True)
class Shards:
    """The databases of the application by their names, and the kind of its sessions."""

    engines: dict[str, Engine]
    is_async: bool

    def run(self, work: Callable[[Session], T], **options: Any) -> T:
        """Call `work` with a new session over all shards, perhaps inside an `AsyncSession`."""
        if self.is_async:
            return asyncio.run(self._run_async(work, options))
        with ShardedSession(**CHOOSERS, shards=dict(self.engines), **options) as session:
            return work(session)

    async def _run_async(self, work: Callable[[Session], T], options: dict[str, Any]) -> T:
        engines = {shard: create_async_engine(engine.url) for shard, engine in self.engines.items()}
        shards = {shard: engine.sync_engine for shard, engine in engines.items()}
        try:
            async with AsyncSession(sync_session_class=ShardedSession, **CHOOSERS, shards=shards, **options) as session:
                return await session.run_sync(work)
        finally:
            for engine in engines.values():
                await engine.dispose()

    def read(self, statement: Any) -> dict[str, list[Any]]:
        """Return what each database has committed."""
        found: dict[str, list[Any]] = {}
        for shard, engine in self.engines.items():
            with Session(engine) as session:
                found[shard] = [*session.scalars(statement)]
        return found
