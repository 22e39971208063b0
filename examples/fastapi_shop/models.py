"""The shop's tables. The tables of the jobs are in the same metadata."""

from __future__ import annotations

from decimal import Decimal

from sqlalchemy import ForeignKey, Numeric
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqla_jobs import Jobs


class Base(DeclarativeBase): ...


jobs = Jobs(Base, modules=["examples.fastapi_shop.tasks"])


class Order(Base):
    """An order of a customer. It gets a `tracking` number when it is shipped."""

    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str]
    address: Mapped[str]
    total: Mapped[Decimal] = mapped_column(Numeric(10, 2))
    tracking: Mapped[str | None]


class Invoice(Base):
    """An invoice for an order. A second invoice for an order would be an error, but no constraint prevents it."""

    __tablename__ = "invoices"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey(Order.id))
    text: Mapped[str]
