"""Tasks that somebody waits for."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from sqlalchemy.orm import DeclarativeBase, Session
from tenacity import Retrying, wait_fixed

from sqla_jobs import Jobs, RunContext


class Base(DeclarativeBase):
    pass


jobs = Jobs(Base)
gate = threading.Event()


@dataclass
class Report:
    pages: int
    title: str


@jobs.task
def report(pages: int) -> Report:
    return Report(pages, "July")


@jobs.task
def settle(session: Session, n: int) -> int:
    session.connection()
    return n


@jobs.task
async def fetch(n: int) -> list[int]:
    return [n]


@jobs.task(retry=Retrying(wait=wait_fixed(0.1)), max_attempts=2)
def fail(message: str) -> None:
    raise ValueError(message)


@jobs.task
def step_by_step(run: RunContext) -> str:
    run.progress(0.25, "one")
    gate.wait(20)
    run.progress(0.75, "two")
    time.sleep(0.5)
    return "done"


@jobs.task
def nap(seconds: float) -> None:
    time.sleep(seconds)
