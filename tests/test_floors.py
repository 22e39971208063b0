"""The house: modules stand on floors, and import only from the floors below."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import sqla_jobs

PACKAGE = Path(sqla_jobs.__file__).parent
FLOORS = """
    errors escapes telling cron_fields findings
    written
    redaction
    context retry interrupt explain cron retention
    outcomes refusals
    models deadlines version
    mapping connections defaults
    queries.* wakeup schema
    pruning
    migrations.*
    entities signatures processes board
    arguments enqueue held
    declaration
    schedules
    tasks
    registry binding actions selection grants
    bulk schedule_actions
    core transactions
    executor loading
    worker.*
    clock.*
    status testing postgres additions
    doctor
    dashboard.*
    cli.*
    flask_cli
    flask
    __main__ worker.__main__ clock.__main__
"""
PURE = {
    "errors", "context", "retry", "interrupt", "outcomes", "cron", "cron_fields", "findings", "retention",
    "escapes", "redaction", "telling", "written",
}  # fmt: skip
LATE = {("core", "worker"), ("core", "clock")}
"""Imports that go upward, from inside a function: a `Jobs` makes its workers."""


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


def floor_of(name: str) -> int:
    lines = [line.split() for line in FLOORS.split("\n") if line.strip()]
    for pattern in (name, f"{name.partition('.')[0]}.*"):
        for floor, line in enumerate(lines):
            if pattern in line:
                return floor
    raise AssertionError(f"sqla_jobs/{name} stands on no floor: give it one in {Path(__file__).name}")


def test_imports_go_only_downward() -> None:
    upward = [
        f"{name} imports {imported}"
        for name in MODULES.keys() - {""}
        for imported, late in own_imports(name)
        if not (late and (name, imported) in LATE)
        and floor_of(imported) >= floor_of(name)
        and name.partition(".")[0] != imported.partition(".")[0]
    ]
    assert upward == []


def test_a_part_of_a_package_does_not_import_the_whole() -> None:
    assert [name for name in MODULES for imported, _ in own_imports(name) if name.startswith(f"{imported}.")] == []


def test_the_lowest_floor_knows_no_database() -> None:
    for name in PURE:
        roots = {imported.partition(".")[0] for imported, _ in imports(MODULES[name])}
        assert roots.isdisjoint({"sqlalchemy", "psycopg"}), name
        assert {imported for imported, _ in own_imports(name)} <= PURE, name


def test_only_the_queries_lock_rows() -> None:
    locking = {"with_for_update", "FOR UPDATE", "FOR NO KEY UPDATE", "FOR SHARE", "FOR KEY SHARE"}
    found = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if any(word in path.read_text() for word in locking)
    }
    assert {name for name in found if not name.startswith("queries/")} == set()
    assert found != set()
