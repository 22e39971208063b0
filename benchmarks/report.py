"""Shows figures as tables, and writes those of one run into docs/performance.md and the README.

On the pages, each section stands between two comments with its name.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import click
from sqlalchemy import Engine, func, select

from benchmarks.versions import ROOT

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


def _markdown(section: str, figures: Sequence[Figure]) -> str:
    rows = [[section, "sqla_jobs", "beside", ""], ["---"] * 4]
    for figure in figures:
        beside = ["", ""] if figure.plain is None else [_number(figure.plain), f"{figure.share:.0%}"]
        rows.append([figure.name, f"{_number(figure.ours)} {figure.unit}", *beside])
    if all(figure.plain is None for figure in figures):
        rows = [[section, ""], *(row[:2] for row in rows[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def commit() -> str:
    """Return the commit of the sources. Raise an error if there are uncommitted changes or there is no repository."""
    git = ["git", "-C", str(ROOT)]
    changed = subprocess.run(
        [*git, "status", "--porcelain", "--", "sqla_jobs", "benchmarks"], capture_output=True, text=True, check=False
    )
    if changed.returncode != 0 or changed.stdout:
        raise click.ClickException(f"the page names the commit that was measured: commit first\n{changed.stdout}")
    return subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()


def write(conditions: str, figures: Mapping[str, Sequence[Figure]]) -> None:
    """Write all figures, which are given by section. `conditions` describes the circumstances of the measurement."""
    (drain,) = (figure for figure in figures["speed"] if figure.name.startswith("one process"))
    texts = {"conditions": conditions}
    for name, measured in figures.items():
        grouped = groupby(measured, attrgetter("section"))
        texts[name] = "\n\n".join(_markdown(section, list(group)) for section, group in grouped)
    _fill(ROOT / "docs/performance.md", {name: f"\n\n{text}\n\n" for name, text in texts.items()})
    _fill(ROOT / "README.md", {"drain": f"{round(drain.ours, -3):,.0f} short jobs a second on {os.cpu_count()} cores"})


def _fill(path: Path, texts: Mapping[str, str]) -> None:
    page = path.read_text(encoding="utf-8")
    for name, text in texts.items():
        opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, opened, rest = page.partition(opening)
        _, closed, after = rest.partition(closing)
        if not (opened and closed):
            raise click.ClickException(f"the page has no place for {name!r}: put {opening}{closing} where it belongs")
        page = before + opening + text + closing + after
    path.write_text(page, encoding="utf-8")
