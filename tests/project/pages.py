"""The blocks of code in the README and the docs."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from tests.conftest import ROOT

MYPY = (
    *(sys.executable, "-m", "mypy", "--strict"),
    *(f"--config-file={ROOT / 'pyproject.toml'}", f"--cache-dir={ROOT / '.mypy_cache'}"),
)
"""As `make types` does, whose cache it shares: most of the time goes into what SQLAlchemy and others declare."""


@dataclass(frozen=True)
class Block:
    """A fenced block; `line` is that of its first line of code."""

    page: Path
    language: str
    line: int
    code: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path, language: str) -> list[Block]:
    source = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w+)\n(.*?)^```$", source, re.MULTILINE | re.DOTALL)
    return [
        Block(page, fence[1], source.count("\n", 0, fence.start(2)) + 1, fence[2])
        for fence in found
        if fence[1] == language
    ]


QUICK_START, *WHAT_OTHERS_LACK = blocks(ROOT / "README.md", "python")


def run_block(block: Block, module: ModuleType) -> None:
    """In place, so that an error shows the line of the page."""
    code = compile("\n" * (block.line - 1) + block.code, str(block.page), "exec")
    exec(code, vars(module))
