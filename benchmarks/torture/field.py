"""The objects on which faults act, and the helpers that all faults use."""

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
"""Begins a fault, plans its end, and returns a description, or `None` if the fault is impossible now."""


@dataclass
class Field:
    """The objects on which faults act. All random choices come from `rng`, and all faults end by `ends_at`."""

    rng: random.Random
    server: LocalServer
    hosts: Sequence[Host]
    services: Sequence[Service]
    load: Load
    load_proxy: Proxy
    engine: Engine
    """An engine with direct connections to the server, under `application_name`."""
    application_name: str
    monitor: Monitor
    agenda: Agenda = field(default_factory=Agenda)
    ends_at: float = 0.0

    def after(self, least: float, most: float, action: Action) -> float:
        """Plan the end of a fault that has just begun. Return its duration in seconds."""
        now = self.agenda.now
        length = max(0.0, min(self.rng.uniform(least, most), self.ends_at - now))
        self.agenda.at(now + length, action)
        return length

    def pick(self) -> tuple[Service, int, list[int]] | None:
        """Pick a process of a running service. Return the service, the pid, and all pids that stop with it."""
        running = [service for service in self.services if service.is_running]
        if not running:
            return None
        service = self.rng.choice(running)
        return service, *service.pick(self.rng)

    def pids_on(self, host: Host) -> list[int]:
        return [pid for service in self.services if service.host is host for pid in service.pids]

    @property
    def pids(self) -> list[int]:
        """The pids of all processes of all services."""
        return [pid for service in self.services for pid in service.pids]
