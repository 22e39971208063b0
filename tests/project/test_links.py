"""Messages name pages that are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import sqla_jobs
from tests.conftest import ROOT


def test_messages_give_pages_by_address_since_an_installed_package_has_none() -> None:
    package = Path(sqla_jobs.__file__).parent
    for path in package.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
                assert not re.search(r"docs/\w", node.value), f"{path}:{node.lineno}"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "page":
                name = ast.literal_eval(node.args[0])
                assert ROOT.joinpath(f"docs/{name}.md").is_file(), f"{path}:{node.lineno}"
