"""An application that runs with the released library and with this one: `python rehearsed_shop.py MODE URL`.

What was enqueued stands in `sent`, and what its jobs did in `effects`, each with the server's time.
"""

from __future__ import annotations

import itertools
import json
import select
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import DateTime, Engine, Text, create_engine, func
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_jobs import ConcurrencyLimit, Jobs, RunContext
from sqla_jobs.models.version import LATEST


class Base(DeclarativeBase):
    pass


jobs = Jobs(Base)
_BINDING = "_binding" if hasattr(jobs, "_binding") else "binding"
"""In the released library it has no underscore."""


class Sent(Base):
    """An enqueue. `kind` is the way it was enqueued."""

    __tablename__ = "sent"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(Text)
    job_id: Mapped[int] = mapped_column(index=True)
    due_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


class Effect(Base):
    """What a job did, and the version of the library that its worker has."""

    __tablename__ = "effects"
    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = mapped_column(index=True)
    version: Mapped[int]
    at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.clock_timestamp())


@jobs.task
def plain(run: RunContext) -> None:
    with getattr(jobs, _BINDING)().transaction() as session:
        session.add(Effect(job_id=run.job_id, version=LATEST))


@jobs.task
def transactional(session: Session, run: RunContext) -> None:
    session.add(Effect(job_id=run.job_id, version=LATEST))


@jobs.task(limits=ConcurrencyLimit(2))
def limited(session: Session, run: RunContext) -> None:
    session.add(Effect(job_id=run.job_id, version=LATEST))


_DELAY = 2.0
_numbers = itertools.count()


def simple(session: Session, queue: str) -> None:
    """One job, of one kind after the other."""
    number = next(_numbers)
    ways: list[tuple[str, Callable[[], Any]]] = [
        ("plain", lambda: plain.enqueue(session)),
        ("transactional", lambda: transactional.enqueue(session)),
        ("limited", lambda: limited.enqueue(session)),
        ("unique", lambda: transactional.options(unique_key=f"key {number // 20 % 3}").enqueue(session)),
        ("delayed", lambda: transactional.options(delay=_DELAY).enqueue(session)),
    ]
    kind, enqueue = ways[number % len(ways)]
    job = enqueue()
    session.flush()
    delay = timedelta(seconds=_DELAY if kind == "delayed" else 0)
    session.add(Sent(kind=kind, job_id=job.id, due_at=func.clock_timestamp() + delay))


def graph(session: Session, queue: str) -> None:
    """A job after a job of `queue`, and one after a batch of two, with the key that `simple` uses sometimes."""
    first = transactional.options(queue=queue).enqueue(session)
    then = transactional.options(after=first).enqueue(session)
    batch = jobs.batch(session, name="two")
    members = [
        transactional.options(batch=batch, queue=queue).enqueue(session),
        plain.options(batch=batch).enqueue(session),
    ]
    last = transactional.options(after=[batch, then], if_failed="run").enqueue(session)
    session.flush()
    for job in (first, then, *members, last):
        session.add(Sent(kind="graph", job_id=job.id, due_at=func.clock_timestamp()))


def enqueue(engine: Engine, one: Callable[[Session, str], None], pause: float) -> None:
    """Enqueue until the standard input ends. A line names another queue. At the end, print the longest transaction."""
    queue, longest, number = "ended by the old", 0.0, 0
    print("begun", flush=True)
    while True:
        if select.select([sys.stdin], [], [], pause)[0]:
            if not (line := sys.stdin.readline()):
                break
            queue = line.strip()
            print("changed", flush=True)
        began = time.monotonic()
        with Session(engine) as session:
            one(session, queue)
            session.commit()
        longest, number = max(longest, time.monotonic() - began), number + 1
    print(json.dumps({"longest": longest, "number": number}), flush=True)


def main(mode: str, url: str) -> None:
    engine = create_engine(url)
    match mode:
        case "create":
            Base.metadata.create_all(engine)
        case "simple":
            enqueue(engine, simple, 0.01)
        case _:
            enqueue(engine, graph, 0.1)
    engine.dispose()


if __name__ == "__main__":
    main(*sys.argv[1:])
