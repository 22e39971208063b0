"""What the shop does in the background: two coroutines, which wait, and a plain function, which works."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from examples.fastapi_shop.client import carrier
from examples.fastapi_shop.models import Invoice, Order, jobs


@jobs.task(queue="carrier", timeout=30)
async def ship(session: AsyncSession, order: Order) -> None:
    """The tracking number, the two jobs that follow and the end of this one are one commit.

    The carrier may be asked twice, such as after a crash. The key tells it that this is the same parcel.
    """
    key = {"Idempotency-Key": f"order-{order.id}"}
    answer = await carrier().post("/parcels", json={"address": order.address}, headers=key)
    answer.raise_for_status()
    tracking: str = answer.json()["tracking"]
    order.tracking = tracking
    await session.run_sync(invoice.enqueue, order=order)
    await session.run_sync(call_for_pickup.enqueue, tracking=tracking)


@jobs.task(queue="http", timeout=30)
async def call_for_pickup(tracking: str) -> None:
    """This takes no session, so any number of them can wait for the carrier without holding a connection."""
    answer = await carrier().put(f"/parcels/{tracking}/pickup")
    answer.raise_for_status()


@jobs.task
def invoice(session: Session, order: Order) -> None:
    """This stands for a PDF, which takes the processor: in a thread it does not hold up the event loop."""
    session.add(Invoice(order_id=order.id, text=f"{order.item:.<40}{order.total:.>12} EUR"))
