"""Shows figures as the tables of docs/performance.md."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

import click
from sqlalchemy import Engine, func, select

from benchmarks.versions import ROOT


class Figure(NamedTuple):
    """A measurement, beside the `plain` figure: for the same work by hand, or with or without a condition."""

    section: str
    name: str
    unit: str
    ours: float
    plain: float | None = None
    less_is_better: bool = False

    @property
    def cells(self) -> list[str]:
        """The cells of a row. The last one compares the figures: 100% is equal, and more is better."""
        ours = [self.name, f"{_number(self.ours)} {self.unit}"]
        if self.plain is None:
            return ours
        share = self.plain / self.ours if self.less_is_better else self.ours / self.plain
        return [*ours, _number(self.plain), f"{share:.0%}"]


def machine(engine: Engine) -> str:
    """Describe the commit, the machine and the server of the measurement."""
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    names = ("server_version", "fsync", "synchronous_commit")
    with engine.connect() as connection:
        version, *durable = (connection.scalar(select(func.current_setting(name))) for name in names)
    return (
        f"commit `{git.stdout.strip()}`, Python {platform.python_version()}, PostgreSQL {version} (fsync {durable[0]}, "
        f"synchronous_commit {durable[1]}), {os.cpu_count()} cores, {platform.machine()}"
    )


def show(figures: Iterable[Figure]) -> None:
    """Print each figure as soon as it is measured, as a row of the table of its section."""
    for section, group in groupby(figures, attrgetter("section")):
        for number, figure in enumerate(group):
            if not number:
                head = [section, "sqla_jobs", "beside", ""][: len(figure.cells)]
                click.echo("\n".join(["", _row(head), _row(["---"] * len(head))]))
            click.echo(_row(figure.cells))


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
