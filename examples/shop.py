"""A small shop: its models, its two tasks, and a function that places orders.

Start workers for the shop with `python -m sqla_jobs.worker examples.shop:jobs`.
"""

from __future__ import annotations

import os
import smtplib
import time
from collections.abc import Mapping
from decimal import Decimal
from email.message import EmailMessage

from sqlalchemy import ForeignKey, Numeric
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from tenacity import Retrying, retry_if_exception_type, wait_random_exponential

from sqla_jobs import Jobs


class Base(DeclarativeBase):
    """The declarative base of the shop's models. The tables of the jobs are in the same metadata."""


class Order(Base):
    """An order of a customer. Its `status` is "placed", then "settled"."""

    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[str] = mapped_column(unique=True)
    customer: Mapped[str]
    email: Mapped[str]
    item: Mapped[str]
    quantity: Mapped[int]
    total: Mapped[Decimal] = mapped_column(Numeric(10, 2))
    status: Mapped[str] = mapped_column(default="placed")


class LedgerEntry(Base):
    """Money received for an order. No constraint forbids a second entry, so a doubled effect would show."""

    __tablename__ = "ledger"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey(Order.id))
    amount: Mapped[Decimal] = mapped_column(Numeric(10, 2))


jobs = Jobs(Base)


@jobs.task(queue="mail", retry=Retrying(retry=retry_if_exception_type(OSError), wait=wait_random_exponential(max=4)))
def send_confirmation(email: str, number: str, total: Decimal) -> None:
    """Mail the customer, at least once. A mail cannot be taken back."""
    mail = EmailMessage()
    mail["From"] = "shop@example.com"
    mail["To"] = email
    mail["Subject"] = f"Your order {number}"
    mail["Message-ID"] = f"<{number}@shop.example.com>"  # the same in every attempt: mailboxes can recognize duplicates
    mail.set_content(f"Thank you! We have received your order {number} over {total} EUR.")
    with smtplib.SMTP("127.0.0.1", int(os.environ["SHOP_SMTP_PORT"]), timeout=10) as server:
        server.send_message(mail)  # a refusal raises an OSError, and the job is tried again


@jobs.task
def settle(session: Session, order: Order) -> str:
    """Book the money exactly once: these writes and the job's completion are one commit."""
    session.add(LedgerEntry(order_id=order.id, amount=order.total))
    session.flush()
    time.sleep(0.05)  # stands for slower work: a worker killed here has written but not committed
    order.status = "settled"
    return f"{order.total} EUR"


class CardDeclined(Exception):
    """The bank refused the payment."""


def place_order(session: Session, line: Mapping[str, str]) -> Order:
    """Add an order and its two jobs to the caller's transaction. Raise `CardDeclined` if the bank refuses the card."""
    order = Order(
        number=line["number"],
        customer=line["customer"],
        email=line["email"],
        item=line["item"],
        quantity=int(line["quantity"]),
        total=int(line["quantity"]) * Decimal(line["price"]),
    )
    session.add(order)
    send_confirmation.enqueue(session, email=order.email, number=order.number, total=order.total)
    settle.enqueue(session, order=order)
    session.flush()  # all rows are in the database now, but nobody else sees them before the commit
    if line["card"] == "declined":
        raise CardDeclined(order.number)
    return order
