"""Carries out the plan: each fault, what ends it, and the services that are started again."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial

import click
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from benchmarks.proxy import Proxy
from benchmarks.torture.agenda import Action, Agenda
from benchmarks.torture.hosts import Host
from benchmarks.torture.monitor import Monitor
from benchmarks.torture.plan import Planned
from benchmarks.torture.services import Service
from sqla_jobs.postgres import LocalServer

_LOAD = "the load"
_PREPARED = b"_pg3_"
"""How psycopg names what it prepares."""
_STEP = 0.05
_LATER = 0.5
"""Seconds after which a fault that cannot be now is tried again."""
_BACKENDS = text(
    "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND application_name <> :ours ORDER BY pid"
)
_TERMINATE = text("SELECT pg_terminate_backend(:pid)")


class Storm:
    """Runs in the calling thread; everything random in it is of the plan's own generator."""

    def __init__(
        self,
        rng: random.Random,
        server: LocalServer,
        hosts: Sequence[Host],
        services: Sequence[Service],
        *,
        load: Proxy,
        engine: Engine,
        application_name: str,
        monitor: Monitor,
    ) -> None:
        self._rng = rng
        self._server = server
        self._hosts = hosts
        self._services = services
        self._load = load
        self._engine = engine
        self._ours = application_name
        self._monitor = monitor
        self.agenda = Agenda()
        self._is_down = False
        self._held_up: set[str] = set()
        """Names of hosts, or of the load, behind a stall or a partition."""
        self._frozen: set[int] = set()
        self._ends_at = 0.0
        self.counts: Counter[str] = Counter()

    def run(self, faults: Sequence[Planned], seconds: float, *, faults_end: float) -> None:
        """Faults at their times, and the services kept up, for so many seconds; all faults are over at `faults_end`."""
        self.agenda.begin()
        self._ends_at = faults_end
        for fault in faults:
            self.agenda.at(fault.at, partial(self._try, fault.kind))
        while self.agenda.now < seconds:
            self.agenda.run_due()
            self.keep()
            time.sleep(_STEP)

    def keep(self) -> None:
        """Start the services that ended."""
        for service in self._services:
            service.keep()

    def _after(self, least: float, most: float, action: Action) -> float:
        """Plan the end of a fault that has just begun; returns after how many seconds that is."""
        now = self.agenda.now
        length = max(0.0, min(self._rng.uniform(least, most), self._ends_at - now))
        self.agenda.at(now + length, action)
        return length

    def _try(self, kind: str) -> None:
        told = {
            "kill": self._kill,
            "freeze": self._freeze,
            "terminate": self._terminate,
            "backends": self._kill_backends,
            "cut": self._cut,
            "commits": self._lose_commits,
            "claims": self._lose_claims,
            "stall": self._stall,
            "partition": self._partition,
            "crash": self._crash,
            "restart": self._restart,
        }[kind]()
        now = self.agenda.now
        if told is None and now + _LATER < self._ends_at:
            self.agenda.at(now + _LATER, partial(self._try, kind))
            return
        self.counts[kind] += told is not None
        click.echo(f"{now:7.1f} s  {kind:<10} {told or 'left out: there was no time left for it'}")

    def _pick(self) -> tuple[Service, int, list[int]] | None:
        running = [service for service in self._services if service.is_running]
        if not running:
            return None
        service = self._rng.choice(running)
        return service, *service.pick(self._rng)

    def _kill(self) -> str | None:
        if (picked := self._pick()) is None:
            return None
        service, pid, pids = picked
        service.signal(pid, signal.SIGSTOP)  # so that what is measured is what dies
        hit = self._monitor.hit("kill", pids)
        service.signal(pid, signal.SIGKILL)
        return f"kill -9 of pid {pid} on {service.name}, which ran {hit} jobs"

    def _freeze(self) -> str | None:
        if (picked := self._pick()) is None or picked[1] in self._frozen:
            return None
        service, pid, pids = picked
        service.signal(pid, signal.SIGSTOP)
        hit = self._monitor.hit("freeze", pids)
        self._frozen.add(pid)
        length = self._after(1.0, 12.0, partial(self._thaw, service, pid))
        return f"SIGSTOP of pid {pid} on {service.name} for {length:.1f} s, which ran {hit} jobs"

    def _thaw(self, service: Service, pid: int) -> None:
        service.signal(pid, signal.SIGCONT)
        self._frozen.discard(pid)

    def _terminate(self) -> str | None:
        if (picked := self._pick()) is None:
            return None
        service, _, _ = picked
        pids = service.pids
        hit = self._monitor.hit("terminate", pids)
        service.signal(pids[0], signal.SIGTERM)
        return f"SIGTERM to {service.name}, which ran {hit} jobs"

    def _kill_backends(self) -> str | None:
        try:
            with self._engine.connect() as connection:
                pids = list(connection.scalars(_BACKENDS, {"ours": self._ours}))
                if not pids:
                    return None
                some = self._rng.sample(pids, min(len(pids), self._rng.randint(1, 5)))
                hit = self._monitor.hit("backends", [pid for service in self._services for pid in service.pids])
                for pid in some:
                    connection.execute(_TERMINATE, {"pid": pid})
        except DBAPIError:  # no server: later
            return None
        return f"pg_terminate_backend of {len(some)} of {len(pids)} connections, while {hit} jobs ran"

    def _cut(self) -> str:
        host = self._rng.choice([None, *self._hosts, *self._hosts])
        if host is None:
            self._load.cut()
            return "all connections of the load reset"
        hit = self._monitor.hit("cut", self._pids_on(host))
        host.proxy.cut()
        return f"all connections of {host.name} reset, which ran {hit} jobs"

    def _pids_on(self, host: Host) -> list[int]:
        return [pid for service in self._services if service.host is host for pid in service.pids]

    def _lose_commits(self) -> str | None:
        chosen = self._pick_free([*self._hosts, None])
        return chosen and self._lose_answers("commits", (b"COMMIT",), *chosen)

    def _lose_claims(self) -> str | None:
        """And ends, and beats: what the own connections of workers say, where each statement commits."""
        chosen = self._pick_free(self._hosts)
        return chosen and self._lose_answers("claims", (b"UPDATE", _PREPARED), *chosen)

    def _lose_answers(self, fault: str, to: tuple[bytes, ...], name: str, proxy: Proxy, pids: list[int]) -> str:
        """What was asked is done, and nobody is told: the answers are held back, and then the connections cut."""
        hit = self._hold_up(fault, name, pids)
        proxy.mute(*to)

        def end() -> None:
            proxy.cut()
            proxy.go_on()

        length = self._after(0.6, 2.0, partial(self._let_go, name, end))
        return f"answers to each {to[0].decode()} of {name} are lost for {length:.1f} s, which ran {hit} jobs"

    def _stall(self) -> str | None:
        if (chosen := self._pick_free([*self._hosts, None])) is None:
            return None
        name, proxy, pids = chosen
        hit = self._hold_up("stall", name, pids)
        proxy.stall()
        length = self._after(1.0, 10.0, partial(self._let_go, name, proxy.go_on))
        return f"connections of {name} pass nothing on for {length:.1f} s, which ran {hit} jobs"

    def _pick_free(self, among: Sequence[Host | None]) -> tuple[str, Proxy, list[int]] | None:
        """A host, or `None` for the load, that is not held up already: its name, its proxy and the pids there."""
        there = [(h.name, h.proxy, self._pids_on(h)) if h else (_LOAD, self._load, list[int]()) for h in among]
        free = [one for one in there if one[0] not in self._held_up]
        return self._rng.choice(free) if free else None

    def _partition(self) -> str | None:
        free = [host for host in self._hosts if host.name not in self._held_up]
        if not free:
            return None
        host = self._rng.choice(free)
        hit = self._hold_up("partition", host.name, self._pids_on(host))
        host.partition()
        length = self._after(2.0, 12.0, partial(self._let_go, host.name, host.heal))
        return f"{host.name} is cut off for {length:.1f} s, which ran {hit} jobs"

    def _hold_up(self, fault: str, name: str, pids: list[int]) -> int:
        self._held_up.add(name)
        return self._monitor.hit(fault, pids)

    def _let_go(self, name: str, end: Action) -> None:
        end()
        self._held_up.discard(name)

    def _crash(self) -> str | None:
        if self._is_down:
            return None
        self._is_down = True
        self._server.crash()
        return f"the server is gone for {self._after(0.2, 4.0, partial(self._start_server, 'crash')):.1f} s"

    def _restart(self) -> str | None:
        if self._is_down:
            return None
        self._is_down = True
        self._server.stop()
        return f"the server is shut down for {self._after(0.0, 2.0, partial(self._start_server, 'restart')):.1f} s"

    def _start_server(self, fault: str) -> None:
        self._server.start()
        self._is_down = False
        self._monitor.outage_ended(fault)
