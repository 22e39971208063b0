"""The shop's tasks: two coroutines, which mostly wait, and a plain function, which uses the CPU."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from examples.fastapi_shop.client import carrier
from examples.fastapi_shop.models import Invoice, Order, jobs


@jobs.task(queue="carrier", timeout=30)
async def ship(session: AsyncSession, order: Order) -> None:
    """Order a parcel. The tracking number, the next two jobs and this job's completion are one commit.

    The carrier may get the request twice, for example after a crash. The idempotency key shows that both requests are
    for the same parcel.
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
    """Ask the carrier to collect the parcel. The task takes no session, so a job holds no connection while it waits."""
    answer = await carrier().put(f"/parcels/{tracking}/pickup")
    answer.raise_for_status()


@jobs.task
def invoice(session: Session, order: Order) -> None:
    """Write the invoice. Making a real PDF would use the CPU; in a thread, that does not hold up the event loop."""
    session.add(Invoice(order_id=order.id, text=f"{order.item:.<40}{order.total:.>12} EUR"))
