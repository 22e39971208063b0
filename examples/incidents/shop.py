"""The application on call: `examples.incidents.shop:jobs`. What surrounds it breaks, and so do some of its tasks."""

from __future__ import annotations

import os
import signal
import socket
import time

from sqlalchemy.orm import DeclarativeBase
from tenacity import Retrying, wait_fixed

from sqla_jobs import Jobs


class Base(DeclarativeBase):
    """Nothing but the jobs."""


jobs = Jobs(Base)
MAIL_PORT = "SHOP_MAIL_PORT"
RENAMED = "SHOP_EXPORT_WAS"
"""The environment stands for what is deployed: with a former name of `orders.export`, that is an alias of it."""


@jobs.task(name="mail.send", queue="mail", max_attempts=2, retry=Retrying(wait=wait_fixed(1)))
def send_mail(customer: int, text: str) -> str:
    """Fails while nothing listens; while something listens and never answers, hangs: there is no timeout."""
    with socket.create_connection(("127.0.0.1", int(os.environ[MAIL_PORT]))) as server:
        answer = server.recv(100).decode()
    return f"{answer} for customer {customer}"


@jobs.task(name="invoice.make", max_attempts=1)
def make_invoice(customer: int) -> None:
    """Fails always."""
    raise LookupError(f"customer {customer} has no address")


@jobs.task(name="image.resize")
def resize(path: str) -> None:
    """Some images need more memory than there is, and the kernel kills the process."""
    if path.endswith(".tiff"):
        os.kill(os.getpid(), signal.SIGKILL)


@jobs.task(name="report.make")
def make_report(seconds: float = 0) -> None:
    """Takes its time."""
    time.sleep(seconds)


@jobs.task(name="orders.export", aliases=[os.environ[RENAMED]] if RENAMED in os.environ else [])
def export_orders() -> None:
    """Had another name."""
