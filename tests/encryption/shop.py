"""An application whose tasks take secrets."""

from __future__ import annotations

import threading
from typing import Any

from sqlalchemy.orm import DeclarativeBase, Session

from sqla_jobs import Jobs, JobState, RunContext, Unique
from sqla_jobs.rules.limits import ConcurrencyLimit


class Base(DeclarativeBase):
    pass


jobs = Jobs(Base)
gate = threading.Event()
begun = threading.Event()
seen: list[Any] = []
"""What the tasks have got."""
charged: list[str] = []


@jobs.task(encrypted=["token"], limits=ConcurrencyLimit(5, key="account"))
def pay(run: RunContext, account: int, token: str = "") -> dict[str, str]:
    run.progress(0.5, f"charging account {account}")
    charge = run.step("charge", _charge, token)
    seen.append((account, token))
    return {"receipt": charge}


def _charge(token: str) -> str:
    charged.append(token)
    return f"charged {token}"


@jobs.task(encrypted=["token"], max_attempts=2, unique=Unique(key="account"))
def refuse(account: int, token: str) -> None:
    raise ValueError(f"refused: {token}")


@jobs.task(encrypted=True)
def settle(session: Session, account: int, secrets: dict[str, float]) -> dict[str, float]:
    seen.append((account, secrets))
    return secrets


@jobs.task(encrypted=True)
async def fetch(url: str) -> list[str]:
    return [url]


@jobs.task(encrypted=["token"])
def login(token: str) -> str:
    return token.upper()


@jobs.task(encrypted=True)
def report(run: RunContext) -> list[str]:
    return [one["receipt"] for one in run.results(pay)]


@jobs.task(encrypted=True)
def confirm(run: RunContext) -> str:
    return run.wait_for("code", str, timeout=None)


@jobs.task(encrypted=["token"])
def hold(token: str) -> str:
    begun.set()
    gate.wait(30)
    return token


@jobs.task
def plain(token: str) -> str:
    seen.append(token)
    return token


def ended(session: Session, job: Any) -> bool:
    session.rollback()
    session.refresh(job)
    return job.state in (JobState.succeeded, JobState.failed)
