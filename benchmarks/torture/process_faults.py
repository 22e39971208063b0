"""Faults of processes: they are killed, frozen, terminated or hung."""

from __future__ import annotations

import signal
from functools import partial

from benchmarks.torture.field import Fault, Field
from benchmarks.torture.services import Service

_HANGS_AFTER = 1.5
"""Seconds to wait until a job that hangs its process has most likely begun to do so."""


class ProcessFaults:
    """Faults of the workers' processes."""

    def __init__(self, field: Field) -> None:
        self._field = field
        self._frozen: set[int] = set()
        self.kinds: dict[str, Fault] = {
            "kill": self._kill,
            "freeze": self._freeze,
            "terminate": self._terminate,
            "hang": self._hang,
        }

    def _kill(self) -> str | None:
        if (picked := self._field.pick()) is None:
            return None
        service, pid, pids = picked
        service.signal(pid, signal.SIGSTOP)  # so that the same jobs are counted and killed
        hit = self._field.monitor.hit("kill", pids)
        service.signal(pid, signal.SIGKILL)
        return f"kill -9 of pid {pid} on {service.name}, which ran {hit} jobs"

    def _freeze(self) -> str | None:
        if (picked := self._field.pick()) is None or picked[1] in self._frozen:
            return None
        service, pid, pids = picked
        service.signal(pid, signal.SIGSTOP)
        hit = self._field.monitor.hit("freeze", pids)
        self._frozen.add(pid)
        length = self._field.after(1.0, 12.0, partial(self._thaw, service, pid))
        return f"SIGSTOP of pid {pid} on {service.name} for {length:.1f} s, which ran {hit} jobs"

    def _thaw(self, service: Service, pid: int) -> None:
        service.signal(pid, signal.SIGCONT)
        self._frozen.discard(pid)

    def _terminate(self) -> str | None:
        if (picked := self._field.pick()) is None:
            return None
        service, _, _ = picked
        pids = service.pids
        hit = self._field.monitor.hit("terminate", pids)
        service.signal(pids[0], signal.SIGTERM)
        return f"SIGTERM to {service.name}, which ran {hit} jobs"

    def _hang(self) -> str:
        self._field.load.add("hang")
        self._field.agenda.at(self._field.agenda.now + _HANGS_AFTER, self._field.monitor.hit_where_hung)
        return "a job keeps the interpreter's lock of its process"
