"""Definitions and docstrings, read from the sources of the library without importing it."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Found:
    """A definition, its module, and the text below it if it is an assignment."""

    module: str
    node: ast.stmt
    text: str = ""


@cache
def _body(module: str) -> list[ast.stmt]:
    """The statements of a module, also those for type checkers alone."""
    spec = find_spec(module)
    assert spec is not None, module
    body = ast.parse(Path(str(spec.origin)).read_text(encoding="utf-8")).body
    return [*body, *(one for node in body if isinstance(node, ast.If) for one in node.body)]


def find(module: str, name: str) -> Found:
    """The definition of a name, through imports. Raises `LookupError` for one of another library."""
    for node, text in below(_body(module)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name and not _is_overload(node):
            return Found(module, node)
        if named(node) == name:
            return Found(module, node, text)
    for node in _body(module):
        if isinstance(node, ast.ImportFrom) and name in {one.name for one in node.names}:
            if str(node.module).startswith("sqla_jobs"):
                return find(str(node.module), name)
            break
    raise LookupError(f"{module} has no {name}")


def below(body: Iterable[ast.stmt]) -> Iterator[tuple[ast.stmt, str]]:
    """Each statement, with the text that stands below it."""
    nodes = list(body)
    for node, after in zip_longest(nodes, nodes[1:]):
        value = after.value if isinstance(after, ast.Expr) else None
        is_text = isinstance(value, ast.Constant) and isinstance(value.value, str)
        yield node, inspect.cleandoc(str(value.value)) if isinstance(value, ast.Constant) and is_text else ""


def named(node: ast.stmt) -> str:
    """What an assignment assigns to; empty for another statement."""
    target = (
        node.targets[0] if isinstance(node, ast.Assign) else node.target if isinstance(node, ast.AnnAssign) else None
    )
    return target.id if isinstance(target, ast.Name) else ""


def decorators(node: ast.ClassDef | Function) -> list[str]:
    return [ast.unparse(one) for one in node.decorator_list]


def _is_overload(node: ast.ClassDef | Function) -> bool:
    return "overload" in decorators(node)


def _classes(found: Found) -> Iterator[ast.ClassDef]:
    """A class, then those of its bases that are the library's."""
    assert isinstance(found.node, ast.ClassDef)
    yield found.node
    for base in found.node.bases:
        name = base.value if isinstance(base, ast.Subscript) else base
        try:
            yield from _classes(find(found.module, ast.unparse(name)))
        except LookupError:
            continue


def method(found: Found, name: str) -> Function:
    """The implementation of a method or property, perhaps that of a base."""
    for owner in _classes(found):
        for node in owner.body:
            if isinstance(node, Function) and node.name == name and not _is_overload(node):
                return node
    raise LookupError(f"{found.module} has no method {name}")


def fields(found: Found) -> Iterator[tuple[str, str, str]]:
    """Name, type and meaning of the attributes that a class declares, and of the values of an enumeration."""
    for owner in _classes(found):
        for node, text in below(owner.body):
            is_value = isinstance(node, ast.Assign) and "StrEnum" in map(ast.unparse, owner.bases)
            if (name := named(node)) and not name.startswith("_") and (is_value or isinstance(node, ast.AnnAssign)):
                yield name, ast.unparse(node.annotation) if isinstance(node, ast.AnnAssign) else "", text
