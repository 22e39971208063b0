"""Mutants of the pure rules: a module with one comparison, operator, number, condition or result changed.

As a pytest plugin, it loads the module with the mutant that `SQLA_JOBS_MUTANT` names. So it imports nothing of it.
"""

from __future__ import annotations

import ast
import copy
import json
import os
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType
from typing import Any

WHICH = "SQLA_JOBS_MUTANT"
_RULES = Path(__file__).parents[2] / "sqla_jobs/rules"
_PAIRS = [(ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.In, ast.NotIn), (ast.Is, ast.IsNot)]
_OTHER: dict[type[ast.AST], type[ast.AST]] = {ast.And: ast.Or, ast.Or: ast.And, ast.Add: ast.Sub, ast.Sub: ast.Add}
for _one, _other in _PAIRS:
    _OTHER |= {_one: _other, _other: _one}


def places() -> list[tuple[str, int, str]]:
    """Each mutant: its module, its number there, and the change."""
    found: list[tuple[str, int, str]] = []
    for path in sorted(_RULES.glob("*.py")):
        for number, (old, new) in enumerate(_changes(ast.parse(path.read_text(encoding="utf-8")))):
            told = (ast.unparse(getattr(one, "test", one)) for one in (old, new))
            found.append((path.stem, number, " -> ".join(told)))
    return found


def _changes(tree: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    for node in ast.walk(tree):
        yield from ((node, new) for new in _others(node))


def _others(node: ast.AST) -> Iterator[ast.AST]:
    new: Any = copy.deepcopy(node)
    match node:
        case ast.Compare(ops=[op]) if type(op) in _OTHER:
            new.ops = [_OTHER[type(op)]()]
            yield new
        case ast.BoolOp(op=op) | ast.BinOp(op=op) if type(op) in _OTHER:
            new.op = _OTHER[type(op)]()
            yield new
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield operand
        case ast.Constant(value=bool(value)):
            new.value = not value
            yield new
        case ast.Constant(value=int(number) | float(number)):
            new.value = number + 1
            yield new
        case ast.IfExp(test=test) | ast.If(test=test):
            new.test = ast.UnaryOp(ast.Not(), test)
            yield new
        case ast.Return(value=ast.expr()):
            new.value = ast.Constant(None)
            yield new


class _Mutant(SourceFileLoader):
    number = 0

    def get_code(self, fullname: str) -> CodeType:
        tree = ast.parse(self.get_data(self.path))
        old, new = [*_changes(tree)][self.number]

        class Replacing(ast.NodeTransformer):
            def visit(self, node: ast.AST) -> Any:
                return new if node is old else self.generic_visit(node)

        code: CodeType = compile(ast.fix_missing_locations(Replacing().visit(tree)), self.path, "exec")
        return code


class _Finder:
    @staticmethod
    def find_spec(name: str, _path: object = None, _target: object = None) -> ModuleSpec | None:
        module, number, _ = json.loads(os.environ[WHICH])
        if name != f"sqla_jobs.rules.{module}":
            return None
        loader = _Mutant(name, str(_RULES / f"{module}.py"))
        loader.number = number
        return spec_from_file_location(name, loader.path, loader=loader)


if WHICH in os.environ and isinstance(json.loads(os.environ[WHICH])[1], int):  # a conftest.py imports the rules
    assert "sqla_jobs.rules" not in sys.modules
    sys.meta_path.insert(0, _Finder)
