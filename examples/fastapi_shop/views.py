"""The HTTP interface of the shop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Request
from pydantic import BaseModel, Field
from sqlalchemy.ext.asyncio import AsyncSession

from examples.fastapi_shop.models import Order
from examples.fastapi_shop.tasks import ship

shop = APIRouter()


class NewOrder(BaseModel):
    item: str
    address: str
    total: Annotated[Decimal, Field(gt=0, decimal_places=2)]


class Placed(BaseModel):
    number: int
    job: int


class Shown(BaseModel):
    item: str
    total: Decimal
    tracking: str | None


async def get_session(request: Request) -> AsyncIterator[AsyncSession]:
    async with request.state.sessions() as session:
        yield session


OwnSession = Annotated[AsyncSession, Depends(get_session)]


@shop.post("/orders", status_code=201)
async def place(new: NewOrder, session: OwnSession) -> Placed:
    """Place an order. The order and its job are one commit, so both exist or neither."""
    order = Order(item=new.item, address=new.address, total=new.total)
    session.add(order)
    job = await session.run_sync(ship.enqueue, order=order)
    await session.commit()
    return Placed(number=order.id, job=job.id)


@shop.get("/orders/{number}")
async def show(number: int, session: OwnSession) -> Shown:
    """Return an order, with its tracking number once it is shipped."""
    if (order := await session.get(Order, number)) is None:
        raise HTTPException(404)
    return Shown(item=order.item, total=order.total, tracking=order.tracking)
