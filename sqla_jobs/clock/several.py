"""The clocks of several databases in one program."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

from sqla_jobs.clock.clock import Clock
from sqla_jobs.database.explain import EXPLAINED, explain
from sqla_jobs.database.outages import is_outage
from sqla_jobs.errors import ConfigurationError
from sqla_jobs.runtime.loop import Loop
from sqla_jobs.runtime.stopping import StopRequest, in_turn, stopped_by_signals


def run_clocks(clocks: Mapping[str, Clock], *, patience: float) -> None:
    """Run each database's clock until SIGTERM or SIGINT. A database that is away is tried again while the others run.

    Raises any other error of a database, with its name, once the clocks are stopped. Stopping a connection in progress
    may take `patience` seconds.
    """
    stop, errors = StopRequest(), list[Exception]()

    def start(name: str, clock: Clock) -> float:
        try:
            clock.start()
        except Exception as error:
            if is_outage(error):
                raise  # the loop tries again
            known = isinstance(error, EXPLAINED)
            errors.append(ConfigurationError(f"[{name}] {explain(error)}") if known else error)
            stop.set()
        return math.inf

    loops = [
        Loop(f"starting the clock of the database {name!r}", partial(start, name, clock), name="sqla_jobs-join")
        for name, clock in clocks.items()
    ]
    with stopped_by_signals(stop):
        for loop in loops:
            loop.start()
        stop.wait()
    in_turn(
        *(loop.stopping.set for loop in loops),
        *(clock.stop for clock in clocks.values()),
        *(partial(loop.stop, patience) for loop in loops),
        *(clock.stop for clock in clocks.values()),  # again: one may just have started
    )
    if errors:
        raise errors[0]
