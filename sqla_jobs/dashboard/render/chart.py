"""Charts as numbers: bars and lines in a picture of 1000 by 100, with axis labels. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqla_jobs.dashboard.data.runs import Figures, Period
from sqla_jobs.dashboard.render.formatting import short
from sqla_jobs.rules.wording import duration, plural

WIDTH, HEIGHT = 1000.0, 100.0


@dataclass(frozen=True)
class Bar:
    """One bucket of a bar chart: two stacked parts, and the title shown on hover."""

    x: float
    width: float
    low: float
    high: float
    title: str


@dataclass(frozen=True)
class Chart:
    """One chart."""

    id: str
    title: str
    description: str
    bars: Sequence[Bar]
    lines: Sequence[tuple[str, str]]
    """The name of a line, and the path of a part of it between gaps."""
    marks: Sequence[str]
    """The labels of the vertical axis, from the top."""
    times: Sequence[str]
    """The labels of the horizontal axis, from the left."""
    is_empty: bool


def charts(period: Period, whole: Figures, by_bucket: Mapping[int, Figures]) -> list[Chart]:
    """Return the charts of ended runs, of wait and of run time."""
    length = period.width * period.buckets
    style = "%a %H:%M" if length > timedelta(days=1) else "%H:%M:%S" if length < timedelta(minutes=30) else "%H:%M"
    labels = [(period.start + period.width * place).strftime(style) for place in range(period.buckets)]
    axis = "%a %d" if length > timedelta(days=1) else style
    times = [*((period.start + length * part / 4).strftime(axis) for part in range(4)), "now"]
    figures = [by_bucket.get(place, Figures()) for place in range(period.buckets)]
    return [
        _throughput(period.title, whole, figures, labels, times),
        _latency("wait", "Wait before start", whole.wait, [one.wait for one in figures], times),
        _latency("run", "Run time", whole.run, [one.run for one in figures], times),
    ]


def _throughput(
    said: str, whole: Figures, figures: Sequence[Figures], labels: Sequence[str], times: Sequence[str]
) -> Chart:
    """Return the chart of ended runs: succeeded below, failed above."""
    top = nice(max(1.0, *(one.total for one in figures)))
    slot = WIDTH / len(figures)
    bars = [
        Bar(
            round(place * slot + slot * 0.14, 2),
            round(slot * 0.72, 2),
            round(HEIGHT * one.succeeded / top, 2),
            round(HEIGHT * one.failed / top, 2),
            f"{label}: {one.succeeded:,} succeeded, {one.failed:,} failed",
        )
        for place, (one, label) in enumerate(zip(figures, labels, strict=True))
    ]
    summary = f"{said}: {plural(whole.succeeded, 'run')} succeeded and {whole.failed:,} failed, in {len(bars)} bars."
    marks = [short(top), short(top / 2), "0"]
    return Chart("throughput", "Throughput", summary, bars, [], marks, times, not whole.total)


def _latency(
    name: str,
    title: str,
    whole: tuple[float, float] | None,
    values: Sequence[tuple[float, float] | None],
    times: Sequence[str],
) -> Chart:
    """Return the chart of a median and a 95th percentile over time."""
    top = _nice_seconds(max([pair[1] for pair in values if pair] or [1.0]))
    parts = ((1, "p95"), (0, "p50"))
    lines = [(said, path) for part, said in parts for path in _paths([pair and pair[part] for pair in values], top)]
    summary = f"Half within {duration(whole[0])}, 95 % within {duration(whole[1])}." if whole else "No runs."
    marks = [duration(top), duration(top / 2), "0"]
    return Chart(name, title, summary, [], lines, marks, times, whole is None)


def nice(value: float) -> float:
    """Round up to 1, 2, 4, 5 or 10 times a power of ten, so that half of an axis is a round number, too."""
    if value <= 0:
        return 1.0
    size = 10.0 ** math.floor(math.log10(value))
    return next(step * size for step in (1, 2, 4, 5, 10) if step * size >= value * (1 - 1e-9))


def _nice_seconds(value: float) -> float:
    """Round up like `nice`, in the units of durations."""
    for unit, most in ((1.0, 60.0), (60.0, 3600.0), (3600.0, 86400.0)):
        if value <= most:
            return unit * nice(value / unit) if value / unit > 1 or unit == 1.0 else unit
    return 86400 * nice(value / 86400)


def _paths(values: Sequence[float | None], top: float) -> list[str]:
    """Return one path for each part between gaps. A single point is a short dash."""
    slot = WIDTH / len(values)
    paths: list[str] = []
    points: list[tuple[float, float]] = []
    for place, value in enumerate([*values, None]):
        if value is not None:
            points.append(((place + 0.5) * slot, HEIGHT * (1 - min(value / top, 1))))
        elif points:
            if len(points) == 1:
                ((x, y),) = points
                points = [(x - slot / 4, y), (x + slot / 4, y)]
            paths.append("M" + " L".join(f"{x:.1f} {y:.2f}" for x, y in points))
            points = []
    return paths
