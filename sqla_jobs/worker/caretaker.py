"""The parent's side of the database: beats for its children, and settles what dead ones held."""

from __future__ import annotations

import logging
import math
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psycopg
from sqlalchemy import Connection, Engine, NullPool, create_engine
from sqlalchemy.orm import registry

from sqla_jobs import processes
from sqla_jobs.connections import own_engine
from sqla_jobs.mapping import Models, map_models
from sqla_jobs.models import JobMixin
from sqla_jobs.outcomes import Released, word
from sqla_jobs.queries import Finish, Queries
from sqla_jobs.wakeup import notify
from sqla_jobs.worker.link import Address
from sqla_jobs.worker.patience import Patience
from sqla_jobs.worker.pulse import Pulse
from sqla_jobs.worker.settings import Rhythm

log = logging.getLogger("sqla_jobs.worker")

_LOOK = 0.5
_AGAIN = 0.1
"""Seconds between two looks at what a dead process left."""
_LINGER, _LINGER_AT_END = 5.0, 1.0
"""Seconds, once the server answers, for which a claim of a dead process is waited for that may be under way there."""


@dataclass(slots=True)
class Estate:
    """What a dead process held: the ends of what it had begun; the rest is given back."""

    process_id: uuid.UUID
    begun: list[Finish]
    known: list[int] = field(init=False)
    seen_at: float = field(init=False, default=math.inf)
    """When it was looked at first. A claim that was under way may still bring something."""

    def __post_init__(self) -> None:
        self.known = [end.lease.run_id for end in self.begun]


class Caretaker:
    """A thread with a connection of its own. The application is not imported here: a child tells the address.

    `gone` is called for a process that was taken for dead, `beaten` for those that were not, with the moment.
    """

    def __init__(
        self,
        rhythm: Rhythm,
        *,
        living: Callable[[], list[uuid.UUID]],
        gone: Callable[[uuid.UUID], None],
        beaten: Callable[[set[uuid.UUID], float], None],
    ) -> None:
        self._rhythm = rhythm
        self._living = living
        self._gone = gone
        self._beaten = beaten
        self._address: Address | None = None
        self._estates: list[Estate] = []
        self._linger = _LINGER
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="sqla_jobs-caretaker", daemon=True)

    def learn(self, address: Address) -> None:
        """How to connect from now on."""
        is_first, self._address = self._address is None, address
        if is_first:
            self._thread.start()

    def settle(self, estate: Estate) -> None:
        """Record what a dead process had begun, and give back the rest, as soon as possible."""
        self._estates.append(estate)
        self._wake.set()

    def close(self, timeout: float) -> bool:
        """Settle what is left, for at most `timeout` seconds. Returns whether all of it is."""
        if self._address is None:
            return True
        self._linger = _LINGER_AT_END
        deadline = time.monotonic() + timeout
        while self._estates and time.monotonic() < deadline:
            time.sleep(0.01)
        self._stop.set()
        self._wake.set()
        self._thread.join(1.0)
        return not self._estates

    def _connect(self) -> psycopg.Connection[Any]:
        assert self._address is not None
        return self._address.connect()

    def _loop(self) -> None:
        assert self._address is not None
        app = create_engine("postgresql+psycopg://", creator=self._connect, poolclass=NullPool)
        engine = Patience("connecting", self._stop).call(lambda: own_engine(app, patience=self._rhythm.patience))
        models = map_models(registry(), self._address.schema, self._address.prefix, JobMixin)
        queries = Queries(models)
        pulse = Pulse(engine, queries, self._rhythm)
        patience = Patience("the heartbeat", self._stop, longest=self._rhythm.longest_wait)
        while not self._stop.is_set():
            patience.run(lambda: self._tick(engine, models, queries, pulse))
            self._wake.wait(_AGAIN if self._estates else min(_LOOK, self._rhythm.heartbeat))
            self._wake.clear()
        engine.dispose()

    def _tick(self, engine: Engine, models: Models[Any], queries: Queries, pulse: Pulse) -> None:
        for estate in list(self._estates):
            with engine.begin() as connection:
                if _settle(connection, queries, estate):
                    notify(connection, models.channel, [""])
                elif not estate.begun and time.monotonic() > estate.seen_at + self._linger:
                    processes.unregister(connection, models, estate.process_id)
                    self._estates.remove(estate)
            estate.seen_at = min(estate.seen_at, time.monotonic())
        if pulse.is_due:
            living = self._living()
            alive = pulse.beat([*living, *(estate.process_id for estate in self._estates)])
            self._beaten({process_id for process_id, said in alive.items() if said}, pulse.beat_at)
            for process_id in living:
                if process_id not in alive:
                    self._gone(process_id)
            pulse.rescue()


def _settle(connection: Connection, queries: Queries, estate: Estate) -> bool:
    """Returns whether something is free for others now; what a user holds locked stays."""
    ended: list[Finish] = []
    if estate.begun:
        fates = queries.finish(connection, estate.begun)
        ended = [end for end in estate.begun if end.lease.run_id not in fates]
        estate.begun = [end for end in estate.begun if fates.get(end.lease.run_id) == "locked"]
    for end in ended:
        log.warning("the attempt at job %s is %s: its process died", end.lease.job_id, word(end.outcome))
    unstarted = queries.stray(connection, estate.process_id, estate.known, age=0)
    if unstarted:
        queries.finish(connection, [Finish(lease, Released()) for lease in unstarted])
    return bool(ended or unstarted)
