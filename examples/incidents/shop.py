"""The application of the incidents, `examples.incidents.shop:jobs`. The mail server and some tasks fail."""

from __future__ import annotations

import os
import signal
import socket
import time

from sqlalchemy.orm import DeclarativeBase
from tenacity import Retrying, wait_fixed

from sqla_jobs import Jobs


class Base(DeclarativeBase):
    """The declarative base. The application has no tables except those of the jobs."""


jobs = Jobs(Base)
MAIL_PORT = "SHOP_MAIL_PORT"
RENAMED = "SHOP_EXPORT_WAS"
"""The environment variable that simulates a deploy. Its value, an old name of `orders.export`, becomes an alias."""


@jobs.task(name="mail.send", queue="mail", max_attempts=2, retry=Retrying(wait=wait_fixed(1)))
def send_mail(customer: int, text: str) -> str:
    """Fail while no mail server listens. If one listens but never answers, hang, since there is no timeout."""
    with socket.create_connection(("127.0.0.1", int(os.environ[MAIL_PORT]))) as server:
        answer = server.recv(100).decode()
    return f"{answer} for customer {customer}"


@jobs.task(name="invoice.make", max_attempts=1)
def make_invoice(customer: int) -> None:
    """Always fail."""
    raise LookupError(f"customer {customer} has no address")


@jobs.task(name="image.resize")
def resize(path: str) -> None:
    """Kill the process for some images, as the kernel does if an image needs more memory than there is."""
    if path.endswith(".tiff"):
        os.kill(os.getpid(), signal.SIGKILL)


@jobs.task(name="report.make")
def make_report(seconds: float = 0) -> None:
    """Run for a few seconds."""
    time.sleep(seconds)


@jobs.task(name="orders.export", aliases=[os.environ[RENAMED]] if RENAMED in os.environ else [])
def export_orders() -> None:
    """Do nothing. This task was renamed."""
