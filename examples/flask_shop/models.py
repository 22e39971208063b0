"""The shop's tables. The tables of the jobs are in the same metadata."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING

from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import ForeignKey, Numeric, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqla_jobs import Jobs


class Base(DeclarativeBase): ...


db = SQLAlchemy(model_class=Base)
jobs = Jobs(db.Model, modules=["examples.flask_shop.tasks"])

if TYPE_CHECKING:
    Model = Base  # type checkers cannot see db.Model, which is created at run time
else:
    Model = db.Model


class Order(Model):
    """An order of a customer. Its `status` is "new", then "paid", then "booked"."""

    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str]
    email: Mapped[str]
    total: Mapped[Decimal] = mapped_column(Numeric(10, 2))
    status: Mapped[str] = mapped_column(default="new")


class LedgerEntry(Model):
    """An amount of money that was received for an order."""

    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey(Order.id))
    amount: Mapped[Decimal] = mapped_column(Numeric(10, 2))
    booked_at: Mapped[datetime] = mapped_column(server_default=func.now())


def book(order: Order) -> None:
    """Add the order's total to the ledger in `db.session`, which belongs to a request or to a run."""
    db.session.add(LedgerEntry(order_id=order.id, amount=order.total))
    order.status = "booked"
