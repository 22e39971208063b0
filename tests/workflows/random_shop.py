"""An application whose tasks do what their arguments say and write down what they saw, for the random graphs."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Coroutine
from datetime import datetime
from inspect import isawaitable
from typing import Any

from sqlalchemy import BigInteger, DateTime, Text, func
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from tenacity import Retrying, wait_random

from sqla_jobs import ConcurrencyLimit, Jobs, RunContext


class Base(DeclarativeBase):
    pass


class Fact(Base):
    """What a run saw at one place of its plan, committed beside the run's own transaction."""

    __tablename__ = "facts"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    job_id: Mapped[int] = mapped_column(BigInteger, index=True)
    attempt: Mapped[int]
    place: Mapped[str] = mapped_column(Text)
    value: Mapped[str] = mapped_column(Text)
    """JSON, with the keys in the order that the run saw."""
    amount: Mapped[int]
    """The argument of this attempt."""
    at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.clock_timestamp())


class Effect(Base):
    """What a run wrote in its own transaction: in a step, or at its end."""

    __tablename__ = "effects"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    job_id: Mapped[int] = mapped_column(BigInteger, index=True)
    place: Mapped[str] = mapped_column(Text)


jobs = Jobs(Base)
SOON = Retrying(wait=wait_random(0.02, 0.4))
AT_ONCE = {"narrow": 2, "ordered": 1}
"""How many jobs of these tasks may run at once for each key, as they declare."""


class AsPlannedError(Exception):
    """What a task raises in as many of its first attempts as its argument `fails` says."""


def make(session: Session | None, job_id: int, place: str, amount: int) -> dict[str, int]:
    """Return a dict whose order differs at each call."""
    if session is not None:
        session.add(Effect(job_id=job_id, place=place))
    return dict.fromkeys(random.sample(["ann", "bob", "cyd", "zoe", "dora"], 5), amount)


async def make_awaited(session: Session | None, job_id: int, place: str, amount: int) -> dict[str, int]:
    return make(session, job_id, place, amount)


def look(run: RunContext) -> dict[str, list[int]]:
    """Return the results of the jobs before this one, which are their ids."""
    return {name: run.results(jobs.tasks[name]) for name in TASKS}


def perform(run: RunContext, session: Session | None, place: str, amount: int, *, awaited: bool) -> Any:
    match place.split(maxsplit=1)[0]:
        case "work":
            return (asyncio.sleep if awaited else time.sleep)(0.15)
        case "nap":
            return (run.sleep_async if awaited else run.sleep)(place, 0.4)
        case "ask":
            return (run.wait_for_async if awaited else run.wait_for)("go", int, timeout=None)
        case "look":
            return asyncio.to_thread(look, run) if awaited else look(run)
        case _:
            return run.step(place, make_awaited if awaited else make, session, run.job_id, place, amount)


def note(run: RunContext, place: str, value: object, amount: int) -> None:
    with jobs._binding().session_factory() as session:
        fact = Fact(job_id=run.job_id, attempt=run.attempt, place=place, value=json.dumps(value), amount=amount)
        session.add(fact)
        session.commit()


async def follow(
    run: RunContext, amount: int, plan: list[str], fails: int, session: Session | None = None, *, awaited: bool = True
) -> int:
    """Do what the plan says, word by word."""
    for number, word in enumerate(plan):
        value = perform(run, session, place := f"{word} {number}", amount, awaited=awaited)
        note(run, place, await value if isawaitable(value) else value, amount)
    if run.attempt <= fails:
        raise AsPlannedError(f"attempt {run.attempt} of {fails}")
    if session is not None:
        session.add(Effect(job_id=run.job_id, place="end"))
    return run.job_id


def result(plain: Coroutine[Any, Any, int]) -> int:
    """Return what a coroutine returns that awaits nothing."""
    try:
        plain.send(None)
    except StopIteration as end:
        return int(end.value)
    raise AssertionError


@jobs.task(retry=SOON)
def plain(run: RunContext, amount: int, plan: list[str], fails: int, key: int) -> int:
    return result(follow(run, amount, plan, fails, awaited=False))


@jobs.task(retry=SOON, limits=ConcurrencyLimit(2, key="key"), retention={"succeeded": 3600})
def narrow(run: RunContext, amount: int, plan: list[str], fails: int, key: int) -> int:
    return result(follow(run, amount, plan, fails, awaited=False))


@jobs.task(retry=SOON, limits=ConcurrencyLimit(1, key="key", ordered=True))
def ordered(run: RunContext, amount: int, plan: list[str], fails: int, key: int) -> int:
    return result(follow(run, amount, plan, fails, awaited=False))


@jobs.task(retry=SOON)
def written(session: Session, run: RunContext, amount: int, plan: list[str], fails: int, key: int) -> int:
    return result(follow(run, amount, plan, fails, session, awaited=False))


@jobs.task(retry=SOON)
async def awaited(run: RunContext, amount: int, plan: list[str], fails: int, key: int) -> int:
    return await follow(run, amount, plan, fails)


@jobs.task(retry=SOON)
async def both(session: AsyncSession, run: RunContext, amount: int, plan: list[str], fails: int, key: int) -> int:
    return await follow(run, amount, plan, fails, session.sync_session)


WRITING = ("written", "both")
"""Tasks with a transaction of their own."""
TASKS = ["plain", "narrow", "awaited", *WRITING, "ordered"]
