"""What faults are done to, and what all of them need."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Engine

from benchmarks.proxy import Proxy
from benchmarks.torture.agenda import Action, Agenda
from benchmarks.torture.hosts import Host
from benchmarks.torture.load import Load
from benchmarks.torture.monitor import Monitor
from benchmarks.torture.services import Service
from sqla_jobs.postgres import LocalServer

Fault = Callable[[], "str | None"]
"""Begins, plans its own end, and returns what it did; or `None` where it cannot be now."""


@dataclass
class Field:
    """Everything random of a fault is of `rng`; all faults are over at `ends_at`."""

    rng: random.Random
    server: LocalServer
    hosts: Sequence[Host]
    services: Sequence[Service]
    load: Load
    load_proxy: Proxy
    engine: Engine
    """A direct connection to the server, under `application_name`."""
    application_name: str
    monitor: Monitor
    agenda: Agenda = field(default_factory=Agenda)
    ends_at: float = 0.0

    def after(self, least: float, most: float, action: Action) -> float:
        """Plan the end of a fault that has just begun; returns after how many seconds that is."""
        now = self.agenda.now
        length = max(0.0, min(self.rng.uniform(least, most), self.ends_at - now))
        self.agenda.at(now + length, action)
        return length

    def pick(self) -> tuple[Service, int, list[int]] | None:
        """A service that runs, a process of it, and all processes that stop working when that one does."""
        running = [service for service in self.services if service.is_running]
        if not running:
            return None
        service = self.rng.choice(running)
        return service, *service.pick(self.rng)

    def pids_on(self, host: Host) -> list[int]:
        return [pid for service in self.services if service.host is host for pid in service.pids]

    @property
    def pids(self) -> list[int]:
        """Of all processes of all services."""
        return [pid for service in self.services for pid in service.pids]
