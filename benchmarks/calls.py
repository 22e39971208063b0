"""Counts the functions that a worker calls for a job: `python -m benchmarks.calls [KIND ...]` sorts them by calls.

Unlike a time, this count is the same on every machine, even a busy one, to within 1 %.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import click
from sqlalchemy import Engine

from benchmarks import work
from benchmarks.report import Figure
from benchmarks.versions import KINDS, ROOT, pair

_COUNTS = {"plain": 5000, "transactional": 1000, "limited": 2000, "coroutine": 3000}


class CallsOfAJob(NamedTuple):
    """The average number of calls for a job."""

    python: float
    in_c: float
    """The number of calls from Python functions to C functions."""
    functions: list[tuple[str, float]]
    """The Python functions, by file and name, and how often a job calls each of them."""


def count_calls(
    server: Engine, kind: str, sources: Path = ROOT, *, drains: int = 6, count: int | None = None
) -> CallsOfAJob:
    """Count the calls in the threads of one worker. The result comes from the drain with the fewest calls.

    Nearly all calls are made once for each job. The others are made once for each batch of claims or ends, and a busy
    machine makes more batches. The first drain is ignored, since it begins with small batches.
    """
    count, called = count or _COUNTS[kind], list[Counter[str]]()
    with pair(server, kind, sources) as both:
        both.worker.ask("count_calls")
        both.worker.ask("work")
        before = Counter[str]()
        for _ in range(1 + drains):
            both.drain(count)
            so_far = Counter[str](both.worker.ask("calls"))
            called.append(so_far - before)
            before = so_far
    fewest = min(called[1:], key=lambda calls: calls.total() - calls[""])
    in_c = fewest.pop("")
    functions = [(function, number / count) for function, number in fewest.most_common()]
    return CallsOfAJob(fewest.total() / count, in_c / count, functions)


def measure(server: Engine) -> Iterator[Figure]:
    for kind in KINDS:
        yield Figure("calls of Python functions", kind, "calls/job", count_calls(server, kind).python)


@click.command(context_settings={"show_default": True})
@click.argument("kinds", metavar="[KIND ...]", nargs=-1, type=click.Choice(KINDS))
@click.option("--least", default=0.02, help="Leave out functions that a job calls less often than this.")
@click.option(
    "--sources",
    type=click.Path(file_okay=False, path_type=Path),
    default=ROOT,
    help="The folder that contains the library's package.",
)
def main(kinds: Sequence[str], least: float, sources: Path) -> None:
    """Count the calls of Python functions, in the threads of a worker, for each job of a KIND.

    The kinds are plain, transactional, limited and coroutine. Without arguments, all kinds are counted.
    """
    with work.database() as engine:
        for kind in kinds or KINDS:
            calls = count_calls(engine, kind, sources.resolve())
            click.echo(f"{kind}: {calls.python:.1f} calls a job of functions in Python, {calls.in_c:.1f} in C")
            for function, number in calls.functions:
                if number >= least:
                    click.echo(f"{number:10.3f}  {function}")


if __name__ == "__main__":
    main()
