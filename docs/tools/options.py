"""The options of a worker as a table, from its command."""

from __future__ import annotations

from collections.abc import Iterator

import click

from sqla_jobs.cli.running import worker


def table() -> str:
    """Return a Markdown table of the options of `python -m sqla_jobs.worker`."""
    return "".join(f"| {' | '.join(cells)} |\n" for cells in _rows())


def _rows() -> Iterator[tuple[str, str, str]]:
    yield "option", "default", "meaning"
    yield "---", "---", "---"
    for one in worker.params:
        if isinstance(one, click.Option):
            takes = (
                "|".join(map(str, one.type.choices)) if isinstance(one.type, click.Choice) else one.type.name.upper()
            )
            names = " / ".join([*one.opts, *one.secondary_opts]) + ("" if one.is_flag else f" {one.metavar or takes}")
            has_default = isinstance(one.default, str | int | float) and one.default != "" and not one.is_flag
            default = f"`{one.default}`" if has_default else ""
            yield f"`{names}`".replace("|", r"\|"), default, " ".join((one.help or "").split()).replace("|", r"\|")
