"""`python -m benchmarks`: the speed and the cost of jobs, compared with the same work by hand in the same run.

Every loop is bounded. The benchmarks use the database that DATABASE_URL names. Their tables are in a schema of their
own, which is dropped at the end. Without DATABASE_URL, they start a durable PostgreSQL server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import click
from sqlalchemy import Engine

from benchmarks import calls, conditions, cost, observed, page, report, speed, work, workflows
from benchmarks.against import compare
from benchmarks.report import Figure

SECTIONS = ("speed", "held", "scale", "cost", "calls", "observed", "coroutines", "workflows", "flow")


@click.command(context_settings={"show_default": True})
@click.option("--only", multiple=True, type=click.Choice(SECTIONS), default=SECTIONS, help="Sections to measure.")
@click.option("--jobs", "count", default=40_000, help="Number of jobs in a bulk enqueue and in a drain.")
@click.option("--repetitions", default=3, help="Repetitions of each measurement; the median counts.")
@click.option("--seconds", default=60, help="Seconds for which each snapshot is held.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw the ratios into this file.")
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
    plot: Path | None,
    write: bool,
    against: Sequence[str],
    turns: int,
    at_most: float,
    server_at_most: float,
) -> None:
    sections: dict[str, Callable[[Engine], Iterable[Figure]]] = {
        "speed": lambda engine: speed.measure(engine, count, repetitions),
        "held": lambda engine: conditions.held(engine, seconds),
        "scale": lambda engine: conditions.scale(engine, count, repetitions),
        "cost": lambda engine: cost.cost(engine, 25 * count),
        "calls": calls.measure,
        "observed": lambda engine: observed.measure(engine, count, repetitions),
        "coroutines": lambda engine: _coroutines(engine, count, repetitions),
        "workflows": lambda engine: workflows.measure(engine, repetitions),
        "flow": lambda engine: _flow(engine, count, repetitions),
    }
    if write and set(only) != set(SECTIONS):
        raise click.UsageError("--write with --only: the page is made of one run of all")
    commit = page.commit() if write else ""
    figures: dict[str, list[Figure]] = {}
    with work.database() as engine:
        machine = report.machine(engine)
        click.echo(machine)
        if against:
            compare(engine, against, count=count, turns=turns, at_most=at_most, server_at_most=server_at_most)
            return
        for name in only:
            figures[name] = list(report.table(sections[name](engine)))
    if plot is not None:
        report.plot([figure for measured in figures.values() for figure in measured], plot)
    if write:
        page.write(f"commit `{commit}`, {machine}", figures)


def _coroutines(engine: Engine, count: int, repetitions: int) -> Iterable[Figure]:
    """Import the module only now: its coroutine tasks would give all workers of this process an event loop."""
    from benchmarks import coroutines

    return coroutines.measure(engine, count, repetitions)


def _flow(engine: Engine, count: int, repetitions: int) -> Iterable[Figure]:
    """Import the module last: the workers of this process would look for jobs of its limited tasks."""
    from benchmarks import flow

    return flow.measure(engine, count, repetitions)


if __name__ == "__main__":
    main()
