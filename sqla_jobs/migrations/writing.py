"""Writes a revision for an application's own Alembic history."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from typing import Any

from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from alembic.util.langhelpers import rev_id
from sqlalchemy import Table

from sqla_jobs.errors import ConfigurationError
from sqla_jobs.models.mapping import Models
from sqla_jobs.models.version import LATEST, version_in

_READS_TOML = "toml_file" in signature(Config).parameters
"""True for Alembic 1.16 and newer."""


def write_revision(config: str | None, models: Models[Any]) -> Path | None:
    """Write a revision that upgrades the tables from the version that the history reaches. Return its path.

    Return None if the history reaches the latest version. `config` is an alembic.ini or a pyproject.toml. Without
    it, both are searched in the current folder, as Alembic does. No database is needed. Raises
    `ConfigurationError`.
    """
    try:
        scripts = ScriptDirectory.from_config(_config(config))
        sources = [Path(script.path) for script in scripts.walk_revisions()]
        if any("sqla_jobs" in script.branch_labels for script in scripts.walk_revisions()):
            raise ConfigurationError(
                "this history has the branch sqla_jobs, which comes with the library: `alembic upgrade heads`, "
                "and `alembic merge heads` where there are several"
            )
        table, prefix = models.tables["jobs"], models.prefix
        schema = table.schema
        found = max((to for path in sources for to in _reached(path, table, prefix)), default=0)
        if found >= LATEST:
            return None
        made = scripts.generate_revision(
            rev_id(),
            f"{table.fullname} schema {LATEST}",
            imports="from sqla_jobs import migrations",
            upgrades=_call("upgrade", found, LATEST, schema, prefix),
            downgrades=_call("downgrade", LATEST, found, schema, prefix),
        )
    except CommandError as error:
        raise ConfigurationError(f"Alembic says: {error}") from error
    assert made is not None
    return Path(made.path)


def _call(name: str, from_: int, to: int, schema: str | None, prefix: str) -> str:
    quoted = None if schema is None else json.dumps(schema)
    return f'migrations.{name}(op, from_={from_}, to={to}, schema={quoted}, prefix="{prefix}")'


def _config(given: str | None) -> Config:
    """Return Alembic's configuration. Raises `ConfigurationError` if there is no such file."""
    for name in [given] if given else ["alembic.ini", "pyproject.toml"]:
        path = Path(name)
        if not path.is_file():
            continue
        if path.suffix != ".toml":
            beside = Path("pyproject.toml")
            config = Config(path, **_toml(beside if _READS_TOML and beside.is_file() else None))
            if config.get_main_option("script_location") is None and path.with_name("env.py").is_file():
                config.set_main_option("script_location", str(path.parent))  # Flask-Migrate sets it when it runs
            return config
        if given or "[tool.alembic" in path.read_text(encoding="utf-8"):
            return Config(**_toml(path))
    raise ConfigurationError(
        f"there is no {given or 'alembic.ini, and no [tool.alembic] in pyproject.toml,'} in {Path.cwd()}: "
        "run this where the command alembic is run, or give --config PATH; `alembic init`, or `flask db init`, begins "
        "a history"
    )


def _toml(path: Path | None) -> dict[str, Any]:
    """Return the argument for a TOML file. Raises `ConfigurationError` if this Alembic does not read such files."""
    if path is None:
        return {}
    if not _READS_TOML:
        raise ConfigurationError(f"this Alembic does not read {path}: install 1.16 or newer, or write an alembic.ini")
    return {"toml_file": path}


def _reached(path: Path, table: Table, prefix: str) -> Iterator[int]:
    """Yield the versions to which a revision brings these tables, by `migrations.upgrade` or autogenerate's CREATEs."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Call(func=ast.Attribute(attr="upgrade") | ast.Name(id="upgrade"), keywords=given):
                given_values = _constants(given)
                of_these = (given_values.get("schema"), given_values.get("prefix", "sqla_")) == (table.schema, prefix)
                if "from_" in given_values and of_these and isinstance(to := given_values.get("to"), int):
                    yield to
            case ast.Call(func=ast.Attribute(attr="create_table"), args=[ast.Constant(table.name), *_], keywords=given):
                given_values = _constants(given)
                if given_values.get("schema") == table.schema and (version := version_in(given_values.get("comment"))):
                    yield version
            case _:
                pass


def _constants(given: list[ast.keyword]) -> dict[str | None, Any]:
    return {one.arg: one.value.value for one in given if isinstance(one.value, ast.Constant)}
