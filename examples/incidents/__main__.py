"""`python -m examples.incidents [NUMBER]...`: play the incidents, and exit with 1 if one of them cannot be fixed."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType

from examples.database import demo_database
from examples.incidents.failing import (
    a_flood_of_failures,
    a_job_that_cannot_be_interrupted,
    a_job_that_kills_its_process,
)
from examples.incidents.scene import Scene, WentWrong
from examples.incidents.surroundings import a_customer_asks_for_erasure, an_old_transaction, too_few_connections
from examples.incidents.waiting import (
    a_misspelt_name,
    a_paused_queue,
    a_row_that_somebody_holds,
    jobs_of_a_task_that_is_gone,
    ticks_that_fired_nothing,
)

INCIDENTS: Sequence[Callable[[Scene], None]] = (
    a_flood_of_failures,
    a_job_that_kills_its_process,
    a_job_that_cannot_be_interrupted,
    a_paused_queue,
    jobs_of_a_task_that_is_gone,
    a_row_that_somebody_holds,
    ticks_that_fired_nothing,
    a_misspelt_name,
    too_few_connections,
    an_old_transaction,
    a_customer_asks_for_erasure,
)


def main(arguments: Sequence[str]) -> int:
    """Play the incidents with these numbers, or all of them. Return the exit code."""
    if not {*arguments} <= {str(number) for number in range(1, len(INCIDENTS) + 1)}:
        print(f"usage: python -m examples.incidents [NUMBER]..., from 1 to {len(INCIDENTS)}", file=sys.stderr)
        return 2
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, interrupt)
    try:
        with demo_database() as url:
            for number, incident in enumerate(INCIDENTS, 1):
                if not arguments or str(number) in arguments:
                    play(number, incident, url)
    except WentWrong as wrong:
        print(f"FAILED: {wrong}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped: the worker and the server are down, nothing is left behind.")
        return 130
    return 0


def play(number: int, incident: Callable[[Scene], None], url: str) -> None:
    """Play one incident, in tables of its own."""
    began = time.monotonic()
    print(f"\n== {number}. {incident.__name__.replace('_', ' ').capitalize()} ==\n{incident.__doc__}", flush=True)
    with Scene(url) as scene:
        incident(scene)
    print(f"\nMended in {time.monotonic() - began:.0f} s.", flush=True)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, as Ctrl-C does."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
