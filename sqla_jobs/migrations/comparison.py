"""A comparison of a database's tables with the tables that this version expects.

The expected tables are created from the models, as temporary tables in a transaction that is rolled back. Both sets of
tables are then read from the server's catalogs, so that one server describes both in the same words. The comparison
needs the TEMPORARY privilege, which every role has by default, and changes nothing that belongs to the application.
Stored descriptions would need no privilege, but server versions differ in their wording.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import registry

from sqla_jobs.models.citus import TWO_PHASES, managed
from sqla_jobs.models.columns import JobMixin
from sqla_jobs.models.mapping import Models, map_models
from sqla_jobs.models.version import LATEST, found_version

Facts = dict[tuple[str, str], dict[str, str]]
"""The descriptions of one table's columns, constraints and indexes, under keys such as ("column", "id")."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference: something is missing (`found` is None), unexpected (`expected` is None) or different."""

    table: str
    what: str
    expected: str | None
    found: str | None

    def __str__(self) -> str:
        subject = f"{self.table}: {self.what}" if self.what != "table" else f"table {self.table}"
        if self.found is None:
            return f"{subject} is missing, expected {self.expected}" if self.expected else f"{subject} is missing"
        if self.expected is None:
            return f"{subject} is not expected: {self.found}" if self.found else f"{subject} is not expected"
        return f"{subject} is {self.found}, expected {self.expected}"


def compare(connection: sa.Connection, models: Models[Any]) -> list[Difference]:
    """Return all differences, table by table; none if the database matches what this version expects.

    The application's own columns need only exist. The order of columns is not compared. Neither are indexes and
    constraints that are on the application's columns, or that come from its model.
    """
    live = read_tables(connection, models)
    with connection.begin_nested() as savepoint:
        expected = _expected(connection, models.prefix)
        savepoint.rollback()
    table = models.tables["jobs"]
    own = {column.name for column in table.columns}
    declared = {str(one.name) for one in table.indexes} | {str(one.name) for one in table.constraints}
    found: list[Difference] = []
    for noun in models.tables:
        name = models.tables[noun].fullname
        if noun not in live:
            found.append(Difference(name, "table", "", None))
            continue
        if noun == "jobs":
            found += _version(connection, models)
            found += _missing_own(name, own - _columns(expected[noun]), live[noun])
            live[noun] = _without_own(live[noun], expected[noun], own, declared)
        found += _differences(name, expected[noun], live[noun])
    found += (Difference(name, "kind", "a plain table", "a table of Citus") for name in managed(connection, models))
    if "jobs" in live and models.prefix:
        found += _extra_tables(connection, models)
    return found


def read_tables(connection: sa.Connection, models: Models[Any]) -> dict[str, Facts]:
    """Return the server's facts about the existing tables, by table name without the prefix."""
    oids = {noun: _oid(connection, table) for noun, table in models.tables.items()}
    return {noun: _read(connection, oid) for noun, oid in oids.items() if oid is not None}


def _version(connection: sa.Connection, models: Models[Any]) -> Iterator[Difference]:
    table = models.tables["jobs"]
    version = found_version(connection, table)
    if version != LATEST:
        yield Difference(table.fullname, "version", str(LATEST), None if version is None else str(version))


def _differences(table: str, expected: Facts, found: Facts) -> Iterator[Difference]:
    for key in sorted(expected.keys() | found.keys()):
        kind, name = key
        if key not in found:
            yield Difference(table, f"{kind} {name}", _shown(expected[key]), None)
        elif key not in expected:
            yield Difference(table, f"{kind} {name}", None, _shown(found[key]))
        else:
            for facet in expected[key].keys() - {"columns"}:
                wanted = expected[key][facet]
                if (had := found[key][facet]) != wanted:
                    what = f"{kind} {name}" if facet == "definition" else f"{facet} of {kind} {name}"
                    yield Difference(table, what, wanted, had)


def _shown(facts: dict[str, str]) -> str:
    return facts.get("definition") or f"{facts['type']} {facts['nullability']}"


def _columns(facts: Facts) -> set[str]:
    return {name for kind, name in facts if kind == "column"}


def _missing_own(table: str, own: set[str], found: Facts) -> Iterator[Difference]:
    for name in sorted(own - _columns(found)):
        yield Difference(table, f"column {name}", "your job_class has it, so one of your own migrations adds it", None)


def _without_own(found: Facts, expected: Facts, own: set[str], declared: set[str]) -> Facts:
    ours = _columns(expected)

    def is_own(kind: str, name: str) -> bool:
        if (kind, name) in expected:
            return False
        if kind == "column":
            return name in own
        on = set(found[kind, name]["columns"].split())
        return name in declared or bool(on - ours)

    return {key: facts for key, facts in found.items() if not is_own(*key)}


def _expected(connection: sa.Connection, prefix: str) -> dict[str, Facts]:
    metadata = sa.MetaData()
    models = map_models(registry(metadata=metadata), "pg_temp", prefix, JobMixin)
    metadata.create_all(connection, checkfirst=False)
    return read_tables(connection, models)


def _oid(connection: sa.Connection, table: sa.Table) -> int | None:
    name: Any = connection.dialect.identifier_preparer.format_table(table)
    oid: int | None = connection.scalar(sa.text("SELECT to_regclass(:name)::oid::bigint"), {"name": name})
    return oid


_FACTS: Mapping[str, str] = {
    "column": """
        SELECT attname AS name, format_type(atttypid, atttypmod) AS type,
            CASE WHEN attnotnull THEN 'NOT NULL' ELSE 'NULL' END AS nullability,
            coalesce(pg_get_expr(d.adbin, d.adrelid),
                     'identity of ' || substring(pg_get_serial_sequence(attrelid::regclass::text, attname)
                                                 from '[^.]+$')
                     || ', cache ' || s.seqcache || ', by ' || s.seqincrement, 'none') AS default
        FROM pg_attribute a LEFT JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (a.attrelid, a.attnum)
        LEFT JOIN pg_sequence s ON a.attidentity <> ''
            AND s.seqrelid = pg_get_serial_sequence(attrelid::regclass::text, attname)::regclass
        WHERE attrelid = :oid AND attnum > 0 AND NOT attisdropped
    """,
    "constraint": """
        SELECT conname AS name,
            regexp_replace(pg_get_constraintdef(c.oid), ' REFERENCES ("([^"]|"")+"|[^".(]+)[.]', ' REFERENCES ')
            AS definition,
            (SELECT string_agg(attname, ' ' ORDER BY attnum) FROM pg_attribute
             WHERE attrelid = conrelid AND attnum = ANY(conkey)) AS columns
        FROM pg_constraint c WHERE conrelid = :oid AND contype IN ('p', 'u', 'c', 'f', 'x')
    """,
    "index": """
        SELECT relname AS name,
            regexp_replace(pg_get_indexdef(indexrelid), ' ON (ONLY )?.*? USING ', ' USING ')
            || CASE WHEN indisvalid THEN '' ELSE ' (not valid: its build failed, so drop and build it again)' END
            AS definition,
            (SELECT string_agg(attname, ' ' ORDER BY attnum) FROM pg_attribute
             WHERE attrelid = indrelid AND attnum = ANY(indkey)) AS columns
        FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid WHERE indrelid = :oid
    """,
}


def _read(connection: sa.Connection, oid: int) -> Facts:
    return {
        (kind, str(row["name"])): {facet: str(value) for facet, value in row.items() if facet != "name"}
        for kind, query in _FACTS.items()
        for row in connection.execute(sa.text(query), {"oid": oid}).mappings()
    }


_BESIDE = sa.text("""
    SELECT c.relname FROM pg_class c JOIN pg_class jobs ON jobs.relnamespace = c.relnamespace
    WHERE jobs.oid = :jobs AND c.relkind IN ('r', 'p')
    AND starts_with(c.relname, :prefix) AND c.relname NOT IN :known
    ORDER BY 1
""").bindparams(sa.bindparam("known", expanding=True))


def _extra_tables(connection: sa.Connection, models: Models[Any]) -> Iterator[Difference]:
    """Yield the tables whose names begin with the prefix, except those of the application or another `Jobs`."""
    table = models.tables["jobs"]
    known = [one.name for one in table.metadata.tables.values()] + [f"{models.prefix}{TWO_PHASES}"]
    given = {"jobs": _oid(connection, table), "prefix": models.prefix, "known": known}
    rest: Sequence[str] = connection.scalars(_BESIDE, given).all()
    for name in rest:
        if not name.endswith(tuple(models.tables)):
            yield Difference(table.fullname.removesuffix(table.name) + name, "table", None, "")
