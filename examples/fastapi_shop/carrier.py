"""A stand-in for the service of a parcel carrier, to try the shop with."""

from __future__ import annotations

import asyncio
import threading
from typing import Annotated

from fastapi import FastAPI, Header
from pydantic import BaseModel


class Parcel(BaseModel):
    address: str


class Carrier(FastAPI):
    """Creates one parcel for each idempotency key, however often a client asks for it."""

    def __init__(self) -> None:
        super().__init__(title="Carrier")
        self.asked: list[str] = []
        """The idempotency keys of all requests for parcels."""
        self.parcels: dict[str, str] = {}
        """The tracking numbers, by idempotency key."""
        self.pickups: set[str] = set()
        self.is_open = threading.Event()
        """While this event is cleared, requests for parcels wait. Any thread may set or clear it."""
        self.is_open.set()
        self.post("/parcels")(self._take)
        self.put("/parcels/{tracking}/pickup")(self._pick_up)

    async def _take(self, parcel: Parcel, idempotency_key: Annotated[str, Header()]) -> dict[str, str]:
        self.asked.append(idempotency_key)
        while not self.is_open.is_set():  # noqa: ASYNC110 - it is set in another thread
            await asyncio.sleep(0.01)
        tracking = self.parcels.setdefault(idempotency_key, f"P{len(self.parcels) + 1:06}")
        return {"tracking": tracking}

    async def _pick_up(self, tracking: str) -> None:
        self.pickups.add(tracking)


app = Carrier()
