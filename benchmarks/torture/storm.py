"""Carries out the plan: begins and ends each fault, and restarts services that ended."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from functools import partial

import click

from benchmarks.torture.field import Fault, Field
from benchmarks.torture.network_faults import NetworkFaults
from benchmarks.torture.plan import Planned
from benchmarks.torture.process_faults import ProcessFaults
from benchmarks.torture.server_faults import ServerFaults

_STEP = 0.05
_LATER = 0.5
"""Seconds until the next try, if a fault was impossible."""
_SETTLED = 8.0
"""Seconds from the last fault until all effects of faults are over: more than the lease."""


class Storm:
    """Carries out the plan in the calling thread."""

    exit_code: int | None = None
    """Set if a signal has asked the program to exit: an error of the statement that it interrupted may hide that."""

    def __init__(self, field: Field) -> None:
        self._field = field
        self.agenda = field.agenda
        self._at_server = ServerFaults(field)
        self._kinds: dict[str, Fault] = {
            **ProcessFaults(field).kinds,
            **NetworkFaults(field).kinds,
            **self._at_server.kinds,
        }
        self.counts: Counter[str] = Counter()

    @property
    def stepped_over(self) -> set[int]:
        """The runs that were under way when the clock stepped without other faults."""
        return self._at_server.stepped_over

    def run(self, faults: Sequence[Planned], seconds: float, *, faults_end: float) -> None:
        """Begin the faults at their times and keep the services running, for this number of seconds.

        All faults end by `faults_end`. When the effects of all faults are over, the clock steps once more.
        """
        self.agenda.begin()
        self._field.ends_at = faults_end
        for fault in faults:
            self.agenda.at(fault.at, partial(self._try, fault.kind))
        self.agenda.at(faults_end + _SETTLED, self._at_server.step_quietly)
        while self.agenda.now < seconds:
            self.agenda.run_due()
            self.keep()
            time.sleep(_STEP)

    def keep(self) -> None:
        """Start the services that have ended. Raises `SystemExit` if a signal has asked for it."""
        if self.exit_code is not None:
            raise SystemExit(self.exit_code)
        for service in self._field.services:
            service.keep()

    def _try(self, kind: str) -> None:
        told = self._kinds[kind]()
        now = self.agenda.now
        if told is None and now + _LATER < self._field.ends_at:
            self.agenda.at(now + _LATER, partial(self._try, kind))
            return
        self.counts[kind] += told is not None
        click.echo(f"{now:7.1f} s  {kind:<10} {told or 'left out: there was no time left for it'}")
