"""The application of workers whose tasks have metrics of their own."""

from __future__ import annotations

from prometheus_client import Counter, Gauge
from sqlalchemy.orm import DeclarativeBase

from sqla_jobs import Jobs


class Base(DeclarativeBase):
    pass


jobs = Jobs(Base)
MAILS = Counter("shop_mails", "Mails that were sent.", ["kind"])
BUSY = Gauge("shop_busy", "Sums that live processes hold.", multiprocess_mode="livesum")


@jobs.task
def send(kind: str) -> None:
    MAILS.labels(kind).inc()
    BUSY.set(1)
