"""Faults of the network: connections are cut or stalled, answers are lost, and whole hosts are cut off."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from benchmarks.proxy import Proxy
from benchmarks.torture.agenda import Action
from benchmarks.torture.field import Fault, Field
from benchmarks.torture.hosts import Host

_LOAD = "the load"
_PREPARED = b"_pg3_"
"""The prefix of the names of psycopg's prepared statements."""


class NetworkFaults:
    """Faults of the connections between the server and the workers, or between the server and the load."""

    def __init__(self, field: Field) -> None:
        self._field = field
        self._held_up: set[str] = set()
        """The names of the hosts, or of the load, that a fault now holds up."""
        self.kinds: dict[str, Fault] = {
            "cut": self._cut,
            "commits": self._lose_commits,
            "claims": self._lose_claims,
            "stall": self._stall,
            "partition": self._partition,
        }

    def _cut(self) -> str:
        host = self._field.rng.choice([None, *self._field.hosts, *self._field.hosts])
        if host is None:
            self._field.load_proxy.cut()
            return "all connections of the load reset"
        hit = self._field.monitor.hit("cut", self._field.pids_on(host))
        host.proxy.cut()
        return f"all connections of {host.name} reset, which ran {hit} jobs"

    def _lose_commits(self) -> str | None:
        chosen = self._pick_free([*self._field.hosts, None])
        return chosen and self._lose_answers("commits", (b"COMMIT",), *chosen)

    def _lose_claims(self) -> str | None:
        """Lose answers on workers' own connections, where each statement commits: to claims, ends and heartbeats."""
        chosen = self._pick_free(self._field.hosts)
        return chosen and self._lose_answers("claims", (b"UPDATE", _PREPARED), *chosen)

    def _lose_answers(self, fault: str, to: tuple[bytes, ...], name: str, proxy: Proxy, pids: list[int]) -> str:
        """Hold back answers, and then cut the connections. The server has done the work, but nobody is told."""
        hit = self._hold_up(fault, name, pids)
        proxy.mute(*to)

        def end() -> None:
            proxy.cut()
            proxy.go_on()

        length = self._field.after(0.6, 2.0, partial(self._let_go, name, end))
        return f"answers to each {to[0].decode()} of {name} are lost for {length:.1f} s, which ran {hit} jobs"

    def _stall(self) -> str | None:
        if (chosen := self._pick_free([*self._field.hosts, None])) is None:
            return None
        name, proxy, pids = chosen
        hit = self._hold_up("stall", name, pids)
        proxy.stall()
        length = self._field.after(1.0, 10.0, partial(self._let_go, name, proxy.go_on))
        return f"connections of {name} pass nothing on for {length:.1f} s, which ran {hit} jobs"

    def _pick_free(self, among: Sequence[Host | None]) -> tuple[str, Proxy, list[int]] | None:
        """Pick a host, or the load (`None`), that is not held up yet. Return its name, its proxy and its pids."""
        load = (_LOAD, self._field.load_proxy, list[int]())
        there = [(host.name, host.proxy, self._field.pids_on(host)) if host else load for host in among]
        free = [one for one in there if one[0] not in self._held_up]
        return self._field.rng.choice(free) if free else None

    def _partition(self) -> str | None:
        free = [host for host in self._field.hosts if host.name not in self._held_up]
        if not free:
            return None
        host = self._field.rng.choice(free)
        hit = self._hold_up("partition", host.name, self._field.pids_on(host))
        host.partition()
        length = self._field.after(2.0, 12.0, partial(self._let_go, host.name, host.heal))
        return f"{host.name} is cut off for {length:.1f} s, which ran {hit} jobs"

    def _hold_up(self, fault: str, name: str, pids: list[int]) -> int:
        self._held_up.add(name)
        return self._field.monitor.hit(fault, pids)

    def _let_go(self, name: str, end: Action) -> None:
        end()
        self._held_up.discard(name)
