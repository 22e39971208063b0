"""`python -m benchmarks`: the speed and the cost of jobs, compared with the same work by hand in the same run.

Every loop is bounded. The benchmarks create databases of their own on the server that DATABASE_URL names. Without
DATABASE_URL, they start a durable PostgreSQL server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click

from benchmarks import cost, report, speed
from benchmarks.against import compare
from benchmarks.report import Figure
from benchmarks.versions import durable_server

SECTIONS = ("speed", "held", "scale", "cost", "calls", "coroutines", "workflows", "flow")


@click.command(context_settings={"show_default": True})
@click.option("--only", multiple=True, type=click.Choice(SECTIONS), default=SECTIONS, help="Sections to measure.")
@click.option("--jobs", "count", default=40_000, help="Number of jobs in a bulk enqueue and in a drain.")
@click.option("--repetitions", default=3, help="Repetitions of each measurement; the median counts.")
@click.option("--seconds", default=60, help="Seconds for which each snapshot is held.")
@click.option(
    "--against",
    metavar="COMMIT",
    multiple=True,
    help="Compare with it instead, and for kinds that it lacks with the next.",
)
@click.option("--turns", default=5, help="Turns of such a comparison.")
@click.option("--at-most", default=1.1, help="The ratio of a job's CPU time above which such a comparison fails.")
@click.option("--server-at-most", default=1.25, help="The same for the CPU time of the server.")
def main(only: Sequence[str], count: int, repetitions: int, seconds: int, **bounds: Any) -> None:
    with durable_server() as server:
        click.echo(report.machine(server))
        if bounds["against"]:
            compare(server, count=count, **bounds)
            return
        sections: dict[str, Callable[[], Iterable[Figure]]] = {
            "held": lambda: speed.held(server, seconds),
            "cost": lambda: cost.measure(server, 25 * count),
            "calls": lambda: cost.calls(server),
        }
        for name in only:
            report.show(sections[name]() if name in sections else speed.measure(server, name, count, repetitions))


if __name__ == "__main__":
    main()
