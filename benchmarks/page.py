"""Writes the figures of one run into docs/performance.md and the README, each between two comments with its name."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from benchmarks import report
from benchmarks.report import Figure
from benchmarks.versions import ROOT

PAGE = ROOT / "docs/performance.md"
PICTURE = PAGE.with_suffix(".svg")
README = ROOT / "README.md"


def commit() -> str:
    """Return the commit of the sources. Raise an error if there are uncommitted changes or there is no repository."""
    git = ["git", "-C", str(ROOT)]
    changed = subprocess.run(
        [*git, "status", "--porcelain", "--", "sqla_jobs", "benchmarks"], capture_output=True, text=True, check=False
    )
    if changed.returncode != 0:
        raise click.ClickException(f"the page names the commit that was measured, and {ROOT} is no git repository")
    if changed.stdout:
        raise click.ClickException(
            f"the page names the commit that was measured: commit what has changed first\n{changed.stdout}"
        )
    return subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()


def write(conditions: str, figures: Mapping[str, Sequence[Figure]]) -> None:
    """Write all figures, which are given by section. `conditions` describes the circumstances of the measurement."""
    (drain,) = (figure for figure in figures["speed"] if figure.name.startswith("one process"))
    drained = f"{round(drain.ours, -3):,.0f} short jobs a second on {os.cpu_count()} cores"
    blocks = {"conditions": conditions} | {section: report.markdown(measured) for section, measured in figures.items()}
    _fill(PAGE, {name: f"\n\n{block}\n\n" for name, block in blocks.items()})
    _fill(README, {"drain": drained})
    report.plot([figure for measured in figures.values() for figure in measured], PICTURE)


def _fill(page: Path, texts: Mapping[str, str]) -> None:
    page.write_text(filled(page.read_text(encoding="utf-8"), texts), encoding="utf-8")


def filled(page: str, texts: Mapping[str, str]) -> str:
    """Return the page with each text in its place."""
    for name, text in texts.items():
        opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, opened, rest = page.partition(opening)
        _, closed, after = rest.partition(closing)
        if not (opened and closed):
            raise click.ClickException(f"the page has no place for {name!r}: put {opening}{closing} where it belongs")
        page = before + opening + text + closing + after
    return page
