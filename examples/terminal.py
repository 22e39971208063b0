"""The output of the examples: a line of progress, and plain tables."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence


class Progress:
    """A line of progress that changes in place on a terminal. In other output, it is a new line every second."""

    def __init__(self) -> None:
        self._in_place = sys.stdout.isatty()
        self._shown_at = 0.0
        self._shown = ""

    def show(self, text: str) -> None:
        """Show the newest state."""
        if self._in_place:
            columns = shutil.get_terminal_size().columns
            print(f"\r\x1b[2K{text[: columns - 1]}", end="", flush=True)
        elif text != self._shown and time.monotonic() - self._shown_at >= 1:
            self._shown, self._shown_at = text, time.monotonic()
            print(text, flush=True)

    def say(self, text: str) -> None:
        """Print a line that stays on the screen."""
        print(f"\r\x1b[2K{text}" if self._in_place else text, flush=True)


def table(heading: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table with columns of minimal width, numbers aligned to the right, and an indent of two spaces."""
    columns = list(zip(heading, *rows, strict=True))
    cells: list[list[str]] = []
    for column in columns:
        width = max(len(str(cell)) for cell in column)
        is_number = bool(rows) and all(isinstance(cell, int | float) for cell in column[1:])
        cells.append([f"{cell!s:>{width}}" if is_number else f"{cell!s:<{width}}" for cell in column])
    return "\n".join(("  " + "  ".join(line)).rstrip() for line in zip(*cells, strict=True))


def verdicts(promises: Sequence[tuple[str, bool, str]]) -> str:
    """Return a table of promises, whether each was kept, and the figures that show it."""
    rows = [["ok" if is_kept else "FAILED", promise, found] for promise, is_kept, found in promises]
    return table(["", "PROMISE", "FOUND"], rows)
