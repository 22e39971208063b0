"""`python -m benchmarks`: the speed and the cost of jobs, compared with the same work by hand in the same run.

Every loop is bounded. The benchmarks create databases of their own on the server that DATABASE_URL names. Without
DATABASE_URL, they start a durable PostgreSQL server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import click

from benchmarks import cost, report, speed
from benchmarks.against import compare
from benchmarks.report import Figure
from benchmarks.versions import durable_server

SECTIONS = ("speed", "held", "scale", "cost", "calls", "observed", "coroutines", "workflows", "flow")


@click.command(context_settings={"show_default": True})
@click.option("--only", multiple=True, type=click.Choice(SECTIONS), default=SECTIONS, help="Sections to measure.")
@click.option("--jobs", "count", default=40_000, help="Number of jobs in a bulk enqueue and in a drain.")
@click.option("--repetitions", default=3, help="Repetitions of each measurement; the median counts.")
@click.option("--seconds", default=60, help="Seconds for which each snapshot is held.")
@click.option("--write", is_flag=True, help="Write the figures into docs/performance.md and the README.")
@click.option(
    "--against",
    metavar="COMMIT",
    multiple=True,
    help="Compare with this commit instead, in turns; with a further one for kinds of jobs that it lacks.",
)
@click.option("--turns", default=5, help="Turns of such a comparison.")
@click.option("--at-most", default=1.1, help="The ratio of a job's CPU time above which such a comparison fails.")
@click.option("--server-at-most", default=1.25, help="The same for the CPU time of the server.")
def main(
    only: Sequence[str],
    count: int,
    repetitions: int,
    seconds: int,
    write: bool,
    against: Sequence[str],
    turns: int,
    at_most: float,
    server_at_most: float,
) -> None:
    if write and set(only) != set(SECTIONS):
        raise click.UsageError("--write with --only: the page is made of one run of all")
    commit = report.commit() if write else ""
    with durable_server() as server:
        machine = report.machine(server)
        click.echo(machine)
        if against:
            compare(server, against, count=count, turns=turns, at_most=at_most, server_at_most=server_at_most)
            return
        sections: dict[str, Callable[[], Iterable[Figure]]] = {
            "held": lambda: speed.held(server, seconds),
            "cost": lambda: cost.measure(server, 25 * count),
            "calls": lambda: cost.calls(server),
        }
        figures: dict[str, list[Figure]] = {}
        for name in only:
            measured = sections[name]() if name in sections else speed.measure(server, name, count, repetitions)
            figures[name] = list(report.table(measured))
    if write:
        report.write(f"commit `{commit}`, {machine}", figures)


if __name__ == "__main__":
    main()
