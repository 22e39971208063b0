"""Charts as numbers: bars and lines in a picture of 1000 by 100, with axis labels. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqla_jobs.dashboard.data.statistics import Bucket, Statistics
from sqla_jobs.dashboard.render.formatting import short
from sqla_jobs.rules.wording import NOTHING, duration, plural

WIDTH, HEIGHT = 1000.0, 100.0


@dataclass(frozen=True)
class Bar:
    """One bucket of a bar chart: two stacked parts, and the title shown on hover."""

    x: float
    width: float
    low: float
    high: float
    title: str

    @property
    def top(self) -> float:
        """The top of the upper part."""
        return HEIGHT - self.low - self.high


@dataclass(frozen=True)
class Line:
    """A line, with one path for each part between gaps."""

    name: str
    css: str
    paths: Sequence[str]


@dataclass(frozen=True)
class Chart:
    """One chart. `rows` holds the same data as a table."""

    id: str
    title: str
    description: str
    bars: Sequence[Bar]
    lines: Sequence[Line]
    marks: Sequence[str]
    """The labels of the vertical axis, from the top."""
    times: Sequence[str]
    """The labels of the horizontal axis, from the left."""
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    is_empty: bool


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


def _labels(figures: Statistics) -> list[str]:
    """Return the start of each bucket, for a table."""
    style = "%a %H:%M" if figures.span.length > timedelta(days=1) else "%H:%M"
    return [bucket.start.strftime(style) if bucket.start else "" for bucket in figures.buckets]


def _times(figures: Statistics) -> list[str]:
    first = figures.buckets[0].start
    if first is None:
        return []
    length = figures.span.width * len(figures.buckets)
    moments: list[datetime] = [first + length * part / 4 for part in range(4)]
    style = "%a %d" if figures.span.length > timedelta(days=1) else "%H:%M"
    return [*(moment.strftime(style) for moment in moments), "now"]


def throughput(figures: Statistics) -> Chart:
    """Return the chart of ended runs: succeeded below, failed above."""
    top = nice(max(1.0, *(bucket.total for bucket in figures.buckets)))
    slot = WIDTH / len(figures.buckets)
    labels = _labels(figures)
    about = "about " if figures.sampled else ""
    bars = [
        Bar(
            round(place * slot + slot * 0.14, 2),
            round(slot * 0.72, 2),
            round(HEIGHT * bucket.succeeded / top, 2),
            round(HEIGHT * bucket.failed / top, 2),
            f"{label}: {about}{bucket.succeeded:,.0f} succeeded, {bucket.failed:,.0f} failed",
        )
        for place, (bucket, label) in enumerate(zip(figures.buckets, labels, strict=True))
    ]
    whole = figures.whole
    return Chart(
        "throughput",
        "Throughput",
        f"{figures.span.title}: {about}{plural(round(whole.succeeded), 'run')} succeeded "
        f"and {whole.failed:,.0f} failed, in {len(bars)} bars.",
        bars,
        [],
        [short(top), short(top / 2), "0"],
        _times(figures),
        ["From (UTC)", "Succeeded", "Failed"],
        [
            [label, f"{bucket.succeeded:,.0f}", f"{bucket.failed:,.0f}"]
            for label, bucket in zip(labels, figures.buckets, strict=True)
        ],
        not whole.total,
    )


def latency(figures: Statistics, name: str, title: str, of: Callable[[Bucket], tuple[float, float] | None]) -> Chart:
    """Return the chart of a median and a 95th percentile over time."""
    values = [of(bucket) for bucket in figures.buckets]
    top = _nice_seconds(max([pair[1] for pair in values if pair] or [1.0]))
    labels = _labels(figures)
    lines = [
        Line(said, css, _paths([pair and pair[part] for pair in values], top))
        for part, said, css in ((1, "p95", "p95"), (0, "p50", "p50"))
    ]
    whole = of(figures.whole)
    middle = f"half within {duration(whole[0])}, 95 % within {duration(whole[1])}" if whole else "no runs"
    return Chart(
        name,
        title,
        f"{figures.span.title}: {middle}.",
        [],
        lines,
        [duration(top), duration(top / 2), "0"],
        _times(figures),
        ["From (UTC)", "p50", "p95"],
        [
            [label, duration(pair[0]) if pair else NOTHING, duration(pair[1]) if pair else NOTHING]
            for label, pair in zip(labels, values, strict=True)
        ],
        whole is None,
    )


def _paths(values: Sequence[float | None], top: float) -> list[str]:
    """Return one path for each part between gaps. A single point is a short dash."""
    slot = WIDTH / len(values)
    paths: list[str] = []
    points: list[str] = []
    for place, value in enumerate([*values, None]):
        if value is not None:
            points.append(f"{(place + 0.5) * slot:.1f} {HEIGHT * (1 - min(value / top, 1)):.2f}")
        elif points:
            if len(points) == 1:
                x, y = map(float, points[0].split())
                points = [f"{x - slot / 4:.1f} {y:.2f}", f"{x + slot / 4:.1f} {y:.2f}"]
            paths.append("M" + " L".join(points))
            points = []
    return paths
