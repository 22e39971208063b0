"""The house: packages are floors, and imports go only downward."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import sqla_jobs

PACKAGE = Path(sqla_jobs.__file__).parent
FLOORS = (
    *("errors", "rules", "cron", "models", "database", "queries", "migrations", "tasks", "encryption"),
    *("binds", "actions", "operations"),
    *("execution", "runtime", "following", "worker", "clock", "jobs", "opentelemetry"),
    *("loading", "postgres", "monitoring", "testing", "pytest_plugin", "supervisor", "prometheus"),
    *("dashboard", "cli", "flask", "__main__"),
)
"""The packages and modules at the top, from the ground up: each may import those before it."""
PURE = ("errors", "rules", "cron")
LATE = {("jobs", "worker"), ("jobs", "clock"), ("jobs", "monitoring"), ("jobs", "following")}
"""Imports that go upward, from inside a function: a `Jobs` makes its workers, and says why a job waits."""
ENTRIES = {"worker.__main__", "clock.__main__"}
"""What `python -m` starts, a part of the command line."""


def modules() -> dict[str, ast.Module]:
    """The syntax trees of the package's modules, by dotted name below the package."""
    found: dict[str, ast.Module] = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        found[name] = ast.parse(path.read_text())
    return found


MODULES = modules()


def imports(node: ast.AST, *, late: bool = False) -> Iterator[tuple[str, bool]]:
    """What is imported below `node`, dotted, and whether only when a function is called.

    What stands under TYPE_CHECKING is not imported.
    """
    match node:
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return
        case ast.Import(names=names):
            yield from ((alias.name, late) for alias in names)
        case ast.ImportFrom(module=str(module), names=names):
            yield from ((f"{module}.{alias.name}", late) for alias in names)
        case ast.ImportFrom():
            raise AssertionError(f"line {node.lineno}: write imports in full, from sqla_jobs…")
        case _:
            late = late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            for child in ast.iter_child_nodes(node):
                yield from imports(child, late=late)


def own_imports(name: str) -> Iterator[tuple[str, bool]]:
    """The modules of the package that `name` imports."""
    for imported, late in imports(MODULES[name]):
        root, _, rest = imported.partition(".")
        if root == "sqla_jobs":
            while rest not in MODULES:  # a name inside of the module
                rest = rest.rpartition(".")[0]
            yield rest, late


def package(name: str) -> str:
    return name.partition(".")[0]


def test_imports_go_only_downward() -> None:
    upward = [
        f"{name} imports {imported}"
        for name in MODULES.keys() - {"", *ENTRIES}
        for imported, late in own_imports(name)
        if not (late and (package(name), package(imported)) in LATE)
        and FLOORS.index(package(imported)) > FLOORS.index(package(name))
    ]
    assert upward == []


def test_the_rules_know_no_database() -> None:
    for name in MODULES:
        if package(name) in PURE:
            roots = {imported.partition(".")[0] for imported, _ in imports(MODULES[name])}
            assert roots.isdisjoint({"sqlalchemy", "psycopg"}), name


def test_only_the_statements_lock_rows() -> None:
    """Judged by what is called, and not by what is written."""
    locking = {
        package(name)
        for name, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == "with_for_update"
    }
    assert locking == {"queries"}
