"""All parts of the tutorial, from beginning to end: files as they are printed, commands as they are typed."""

from __future__ import annotations

import ast
import os
import re
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from sqla_jobs.cli.running import worker
from tests.conftest import ROOT
from tests.helpers import wait_until
from tests.project.pages import Block, blocks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
PARTS = ROOT / "docs/tutorial.md", ROOT / "docs/tutorial-production.md", ROOT / "docs/tutorial-workflows.md"


def steps(page: Path) -> list[Block]:
    """All blocks of a page, in order."""
    kinds = ("python", "toml", "bash", "text")
    return sorted((block for kind in kinds for block in blocks(page, kind)), key=lambda block: block.line)


def write(block: Block, folder: Path) -> None:
    """Write the file that the first line names; what a former block defined is replaced, and the rest stays."""
    first, _, code = block.code.partition("\n")
    path = folder / first.removeprefix("# ")
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".py" and path.exists() and path.parent == folder:
        code = merged(path.read_text(encoding="utf-8"), code)
    path.write_text(code, encoding="utf-8")


def merged(old: str, new: str) -> str:
    """The old module with the imports of the new one, and its definitions in place of those of the same names."""
    imports = [node for node in ast.parse(new).body if isinstance(node, ast.Import | ast.ImportFrom)]
    others = [node for node in ast.parse(new).body if node not in imports]
    defined = {node.name for node in others if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    kept = [node for node in ast.parse(old).body if getattr(node, "name", None) not in defined]
    return "\n".join(ast.unparse(node) for node in [*imports, *kept, *others])


def follow(page: Path, folder: Path, database_url: str) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "DATABASE_URL": database_url, "PATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    printed = ""
    for block in steps(page):
        if block.language == "bash":
            command = ["bash", "-euo", "pipefail", "-c", block.code]
            done = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
            )
            assert done.returncode == 0, f"{block}: {done.stdout}{done.stderr}"
            printed = done.stdout
        elif block.language == "text":
            assert re.fullmatch(pattern(block.code), squeezed(printed)), f"{block}:\n{printed}"
        elif block.code.startswith("# "):
            write(block, folder)


def squeezed(text: str) -> str:
    """Without empty lines, and without the spaces that align tables."""
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "".join(f"{line}\n" for line in lines if line)


def pattern(expected: str) -> str:
    """`…` stands for anything in a line; alone for any number of lines."""
    lines = ("(?:.*\n)*" if line == "…" else f"{re.escape(line)}\n" for line in squeezed(expected).splitlines())
    return "".join(lines).replace("…", ".*")


def test_the_first_part_of_the_tutorial_works_as_printed(tmp_path: Path, database_url: str) -> None:
    follow(PARTS[0], tmp_path, database_url)


def test_the_second_part_goes_on_from_the_first(tmp_path: Path, database_url: str) -> None:
    for block in steps(PARTS[0]):
        if block.language in ("python", "toml"):
            write(block, tmp_path)
    follow(PARTS[1], tmp_path, database_url)


def test_the_third_part_works_as_printed_and_leaves_no_worker_behind(tmp_path: Path, database_url: str) -> None:
    try:
        follow(PARTS[2], tmp_path, database_url)
        wait_until(lambda: not running_in(tmp_path))
    finally:
        for pid in running_in(tmp_path):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def running_in(folder: Path) -> list[int]:
    """The processes whose current folder it is. (None are seen where no /proc is.)"""
    found: list[int] = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            if process.joinpath("cwd").readlink() == folder:
                found.append(int(process.name))
    return found


def test_the_service_of_the_tutorial_starts_a_worker_and_waits_for_its_grace() -> None:
    (unit,) = (block for block in blocks(PARTS[1], "ini") if "[Service]" in block.code)
    service = dict(line.split("=", 1) for line in unit.code.splitlines() if re.match(r"[A-Z]\w+=", line))
    _, module, *arguments = shlex.split(service["ExecStart"])[1:]
    assert module == "sqla_jobs.worker"
    assert worker.make_context("worker", arguments).params["grace"] < int(service["TimeoutStopSec"])
