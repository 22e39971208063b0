"""Compares the present sources with those of a commit, in turns on one server.

What counts is the CPU time for a job, of the worker and of the server's sessions, without the worker's start. The
server must run on this machine, and the machine on Linux. Rates and pick-up times are shown, but decide nothing: they
also measure the disk and whatever else the machine does. On two cores that six programs used at once, the median CPU
time for a plain job over five drains varied by 4 %, and the rate by 50 %.

All figures are medians over the turns. In each turn the commit is measured twice, in different processes. The
difference between the two is the noise. A figure is above the bound if it is so in all turns but one. It is then
measured once more, and counts only if it is above the bound again, because noise seldom repeats.
"""

from __future__ import annotations

import io
import math
import statistics
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import click
from sqlalchemy import Engine

from benchmarks.versions import ROOT, Lacking, Pair, pair

_CPU = "CPU of the worker"
_SERVER = "CPU of the server"
_WIDTH = 40


class Line(NamedTuple):
    """A figure of the commit, of the present sources, and of the commit again, in each turn."""

    name: str
    unit: str
    before: Sequence[float]
    now: Sequence[float]
    again: Sequence[float]

    @property
    def ratios(self) -> list[float]:
        turns = zip(self.before, self.now, self.again, strict=True)
        return [2 * now / (before + again) for before, now, again in turns]

    def is_above(self, at_most: float, server_at_most: float) -> bool:
        """Return whether this is a CPU time that is more than so many times the commit's, in all turns but one.

        A median alone is no bound: of ten kinds of figures whose ratio is 1.05, and varies by 0.1 from turn to turn,
        one is above 1.1 twice in a row in one of four comparisons.
        """
        bound = at_most if self.name.endswith(_CPU) else server_at_most if self.name.endswith(_SERVER) else math.inf
        return all(ratio > bound for ratio in sorted(self.ratios)[1:])

    @property
    def noise(self) -> list[float]:
        return [again / before for before, again in zip(self.before, self.again, strict=True)]


Measured = dict[tuple[str, str], float]
"""Figures by their name and unit."""


def _drain(pair: Pair, count: int) -> Measured:
    drain = pair.drain(count)
    return {(_CPU, "µs/job"): drain.cpu, (_SERVER, "µs/job"): drain.server, ("drain", "jobs/s"): drain.rate}


def _enqueue(pair: Pair, count: int) -> Measured:
    rate, server = pair.enqueue(count)
    return {(_SERVER, "µs/job"): server, ("one by one", "jobs/s"): rate}


def _pick_up(pair: Pair, count: int) -> Measured:
    return {("p50", "ms"): statistics.median(pair.pick_ups(count)[0])}


_MEASURES: dict[str, tuple[Callable[[Pair, int], Measured], int]] = {
    "plain": (_drain, 2),
    "transactional": (_drain, 20),
    "limited": (_drain, 20),
    "coroutine": (_drain, 1),
    "enqueue": (_enqueue, 10),
    "pick-up": (_pick_up, 2000),
}
"""For each kind, the function that measures it, and the divisor of the number of jobs."""


def compare(
    server: Engine, *, against: Sequence[str], count: int, turns: int, at_most: float, server_at_most: float
) -> None:
    """Print each kind's figures as soon as they are measured, beside the first commit that knows this kind of job.

    Raise an error if a kind of job takes more than `at_most` times the commit's CPU time, or more than `server_at_most`
    times that of the server, twice in a row.
    """
    exceeding, known = list[str](), set[str]()
    for revision in against:
        name = revision[:10]
        with sources_of(revision) as sources:
            click.echo(f"\n{'':<{_WIDTH}}  {name:>10}  {'now':>10}  {'ratio':<19}  noise: {name} again")
            for kind, (measure, share) in _MEASURES.items():
                if kind in known:
                    continue
                above = list[str]()
                try:
                    for lines in islice(_measures(server, kind, sources, measure, 1 + count // share, turns), 2):
                        click.echo("\n".join(map(_shown, lines)))
                        if not (above := [line.name for line in lines if line.is_above(at_most, server_at_most)]):
                            break
                except Lacking as lacking:
                    click.echo(f"{kind}: left out, since {name} lacks it ({lacking})")
                    continue
                known.add(kind)
                exceeding += above
    if exceeding:
        raise click.ClickException(
            f"more than {at_most:g} times that of the commit ({server_at_most:g} for the server): "
            + ", ".join(exceeding)
        )


@contextmanager
def sources_of(revision: str) -> Generator[Path]:
    """Yield a temporary folder with the library as it was in that commit."""
    git = ["git", "-C", str(ROOT)]
    packed = subprocess.run([*git, "archive", revision, "sqla_jobs"], capture_output=True, check=False)
    if packed.returncode != 0:
        raise click.ClickException(
            f"{revision!r} is no commit of the repository in {ROOT}: name one that `git log` shows. "
            "Where the clone is shallow, `git fetch --unshallow` brings the others."
        )
    with tempfile.TemporaryDirectory() as folder, tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(folder, filter="data")
        yield Path(folder).resolve()


def _measures(
    server: Engine, kind: str, sources: Path, measure: Callable[[Pair, int], Measured], count: int, turns: int
) -> Iterator[list[Line]]:
    """Yield lists of figures, each list from new turns. The order of the three sides alternates between turns."""
    with ExitStack() as stack:
        sides = [stack.enter_context(pair(server, kind, side)) for side in (sources, ROOT, sources)]
        if kind != "enqueue":
            for side in sides:
                side.worker.ask("work")
                measure(side, 1 + count // 4)  # the first drain takes longer
        while True:
            found = [list[Measured]() for _ in sides]
            for turn in range(turns):
                for number in (0, 1, 2) if turn % 2 else (2, 1, 0):
                    found[number].append(measure(sides[number], count))
            yield [
                Line(f"{kind}: {name}", unit, *([measured[name, unit] for measured in side] for side in found))
                for name, unit in found[0][0]
            ]


def _shown(line: Line) -> str:
    before, now = (statistics.median(figures) for figures in ([*line.before, *line.again], line.now))
    figures = "  ".join(f"{figure:>10,.{0 if figure >= 100 else 1}f}" for figure in (before, now))
    return f"{f'{line.name}, {line.unit}':<{_WIDTH}}  {figures}  {_spread(line.ratios):<19}  {_spread(line.noise)}"


def _spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
