"""The demo's output: a line of progress, and plain tables."""

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
    lines = [[str(cell) for cell in row] for row in (heading, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heading))]
    right = [bool(rows) and all(isinstance(row[column], int | float) for row in rows) for column in range(len(heading))]

    def laid_out(line: Sequence[str]) -> str:
        cells = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ]
        return ("  " + "  ".join(cells)).rstrip()

    return "\n".join(map(laid_out, lines))


def print_verdicts(promises: Sequence[tuple[str, bool, str]]) -> int:
    """Print each promise, whether it was kept, and the counts. Return the exit code: 0 if all promises were kept."""
    rows = [["ok" if is_kept else "FAILED", promise, found] for promise, is_kept, found in promises]
    print(f"\n{table(['', 'PROMISE', 'FOUND'], rows)}\n")
    return 0 if all(is_kept for _, is_kept, _ in promises) else 1
