"""An application of SQLModel, whose tasks are annotated with its own classes of sessions."""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy.orm import registry
from sqlmodel import Field, Session, SQLModel, select
from sqlmodel.ext.asyncio.session import AsyncSession

from sqla_jobs import Jobs


class Base(SQLModel, registry=registry()):
    pass


jobs = Jobs(Base)


class Order(Base, table=True):
    __tablename__: ClassVar[Any] = "orders"
    id: int | None = Field(default=None, primary_key=True)
    status: str = "new"


class Line(Base):
    """An argument, and no table."""

    product: str
    amount: int = 1


class Audited(Session):
    """A subclass of the application's own."""


class Routing(Session):
    """Another one, which is not related to it."""


@jobs.task
def settle(session: Session, order: Order) -> list[int | None]:
    order.status = "settled"
    return [one.id for one in session.exec(select(Order).where(Order.status == "settled"))]


@jobs.task
async def settle_awaited(session: AsyncSession, order: Order) -> list[int | None]:
    order.status = "settled"
    return [one.id for one in await session.exec(select(Order).where(Order.status == "settled"))]
