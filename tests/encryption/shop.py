"""An application whose tasks take secrets."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from pydantic import BaseModel
from sqlalchemy.orm import DeclarativeBase, Session

from sqla_jobs import ConcurrencyLimit, Jobs, RunContext, Unique
from sqla_jobs.encryption import Encrypted


class Base(DeclarativeBase):
    pass


class Card(BaseModel):
    number: Encrypted[str]
    holder: str


@dataclass
class Box:
    content: Encrypted[bytes]
    lid: Encrypted[Decimal | None] = None


jobs = Jobs(Base)
seen: list[Any] = []
"""What the tasks have got."""
charged: list[str] = []


def _charge(token: str) -> Encrypted[str]:
    charged.append(token)
    return f"charged {token}"


@jobs.task(limits=ConcurrencyLimit(5, key="token"))
def pay(run: RunContext, account: int, token: Encrypted[str] = "") -> dict[str, Encrypted[str]]:
    run.progress(0.5, f"charging {token}")
    charge = run.step("charge", _charge, token)
    seen.append((account, token))
    return {"receipt": charge}


@jobs.task(max_attempts=2, unique=Unique(key="token"))
def refuse(account: int, token: Encrypted[str]) -> None:
    raise ValueError(f"refused: {token}\nnot now")


@jobs.task
def keep(session: Session, cards: list[Card], boxes: dict[str, Box]) -> list[Card]:
    seen.append((cards, boxes))
    return cards


@jobs.task
async def fetch(url: Encrypted[str]) -> Encrypted[list[str]]:
    return [url]


@jobs.task
def report(run: RunContext) -> Encrypted[list[str]]:
    return [one["receipt"] for one in run.results(pay)]


@jobs.task
def confirm(run: RunContext) -> Encrypted[str]:
    return run.wait_for("card", Card, timeout=None).number


@jobs.task
def plain(token: str) -> str:
    seen.append(token)
    return token
