"""Shows figures as tables and as a plot, beside the figures for the same work by hand."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import click
from sqlalchemy import Engine, func, select

_WIDTH = 48


class Figure(NamedTuple):
    """A measurement. Its `share` compares it with the plain figure: 1 is equal, and more is better."""

    section: str
    name: str
    unit: str
    ours: float
    plain: float | None = None
    """The figure for comparison: for the same work by hand, or with or without a condition."""
    less_is_better: bool = False

    @property
    def share(self) -> float | None:
        if self.plain is None:
            return None
        return self.plain / self.ours if self.less_is_better else self.ours / self.plain


def machine(engine: Engine) -> str:
    """Describe the machine and the server of the measurement."""
    names = ("server_version", "fsync", "synchronous_commit")
    with engine.connect() as connection:
        version, *durable = (connection.scalar(select(func.current_setting(name))) for name in names)
    return (
        f"Python {platform.python_version()}, PostgreSQL {version} (fsync {durable[0]}, synchronous_commit "
        f"{durable[1]}), {os.cpu_count()} cores, {platform.machine()}"
    )


def table(figures: Iterable[Figure]) -> Iterator[Figure]:
    """Print each figure as soon as it is measured, and yield it."""
    section = ""
    for figure in figures:
        if figure.section != section:
            section = figure.section
            click.echo(f"\n{section:<{_WIDTH}}  {'sqla_jobs':>12}  {'beside':>12}  more is better")
        beside = "" if figure.plain is None else f"{_number(figure.plain):>12}  {figure.share:>7.0%}"
        click.echo(f"{figure.name:<{_WIDTH}}  {_number(figure.ours):>12}  {beside}  {figure.unit}")
        yield figure


def markdown(figures: Sequence[Figure]) -> str:
    """Return the figures as Markdown, with a table for each section."""
    return "\n\n".join(_table(section, list(group)) for section, group in groupby(figures, attrgetter("section")))


def _table(section: str, figures: Sequence[Figure]) -> str:
    if all(figure.plain is None for figure in figures):
        rows = [[section, ""], ["---", "---"], *([figure.name, _measured(figure)] for figure in figures)]
    else:
        rows = [[section, "sqla_jobs", "beside", ""], ["---"] * 4, *map(_compared, figures)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _compared(figure: Figure) -> list[str]:
    beside = ["", ""] if figure.plain is None else [_number(figure.plain), f"{figure.share:.0%}"]
    return [figure.name, _measured(figure), *beside]


def _measured(figure: Figure) -> str:
    return f"{_number(figure.ours)} {figure.unit}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def plot(figures: Sequence[Figure], path: Path) -> None:
    """Draw a bar with the share of each figure, if the figure is compared with another one. Needs matplotlib."""
    from matplotlib.figure import Figure as Canvas

    shown = [(f"{figure.section}: {figure.name}", figure.share) for figure in figures if figure.share is not None]
    canvas = Canvas(figsize=(8, 0.9 + 0.32 * len(shown)), layout="constrained")
    axes = canvas.subplots()
    bars = axes.barh([name for name, _ in shown], [100 * share for _, share in shown], color="#3b6ea5")
    axes.bar_label(bars, fmt="%.0f %%", padding=3)
    axes.axvline(100, color="#888888", linewidth=1)
    axes.invert_yaxis()
    axes.set_xlabel("% of the same by hand, or without the condition; more is better")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12)
    canvas.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
