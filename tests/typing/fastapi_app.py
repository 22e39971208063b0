"""A FastAPI application: enqueueing from a Session, and from an AsyncSession by `run_sync`; a worker inside."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, assert_type

from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel
from sqlalchemy import create_engine, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Mapped, mapped_column, registry, sessionmaker
from sqlmodel import Field, Session, SQLModel

from sqla_jobs import JobMixin, Jobs, JobState, RunContext


class TenantJob(JobMixin):
    tenant: Mapped[str] = mapped_column(server_default="")


jobs = Jobs(registry(metadata=SQLModel.metadata), job_class=TenantJob)
engine = create_engine("postgresql+psycopg://localhost/shop")
factory = sessionmaker(engine, class_=Session)
async_factory = async_sessionmaker(create_async_engine("postgresql+asyncpg://localhost/shop"))


class Item(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    name: str


class NewItem(BaseModel):
    name: str


class JobView(BaseModel):
    id: int
    state: JobState
    args: dict[str, Any]


@jobs.task(max_attempts=3)
def index(session: Session, run: RunContext, item: Item) -> dict[str, Any]:
    return {"name": item.name, "attempt": run.attempt}


@jobs.task
def notify(item: NewItem, *, loud: bool = False) -> None: ...


def sessions() -> Iterator[Session]:
    with factory() as session:
        yield session


async def async_sessions() -> AsyncIterator[AsyncSession]:
    async with async_factory() as session:
        yield session


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
    jobs.bind(factory)
    with jobs.worker({"default": 4}):
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/items")
def create(new: NewItem, session: Annotated[Session, Depends(sessions)]) -> JobView:
    item = Item(name=new.name)
    session.add(item)
    job = index.options(columns={"tenant": "acme"}, unique_key=f"item:{new.name}").enqueue(session, item=item)
    notify.enqueue(session, new, loud=True)
    session.commit()
    assert_type(job, TenantJob)
    return JobView(id=job.id, state=job.state, args=job.args)


@app.post("/async/items")
async def create_async(new: NewItem, session: Annotated[AsyncSession, Depends(async_sessions)]) -> int:
    job = await session.run_sync(lambda sync: notify.enqueue(sync, item=new))
    assert_type(job, TenantJob)
    count = await session.run_sync(lambda sync: notify.enqueue_many(sync, [{"item": new}, {"item": new}]))
    assert_type(count + count.skipped, int)
    await session.commit()
    return job.id


@app.get("/jobs/{job_id}")
async def show(job_id: int, session: Annotated[AsyncSession, Depends(async_sessions)]) -> JobView:
    job = await session.scalar(select(jobs.Job).where(jobs.Job.id == job_id, jobs.Job.tenant == "acme"))
    if job is None:
        raise HTTPException(404)
    assert_type(job.tenant, str)
    return JobView(id=job.id, state=job.state, args=job.args)
