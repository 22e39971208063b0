"""Version 2 says the rules of rows in other words: they allow and forbid the same."""

from __future__ import annotations

import re
import threading

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Connection, Engine, text
from sqlalchemy.orm import Session

from sqla_jobs.migrations import LATEST, downgrade, upgrade
from sqla_jobs.migrations.applying import migrate
from sqla_jobs.migrations.steps.v0002 import RULES, Rule
from tests import shop
from tests.counting import states
from tests.helpers import wait_until

MOMENTS = [
    "'1000-01-01 UTC'",
    "timestamptz '1000-01-01 UTC' - interval '1 microsecond'",
    "timestamptz '9000-01-01 UTC'",
    "timestamptz '9000-01-01 UTC' - interval '1 microsecond'",
    "'infinity'",
]
DEEP = "concat(repeat('[', {0}), repeat(']', {0}))"
DOCUMENTS = [
    *("'null'", "'7'", "'[]'", "'[{}]'", "'{}'", "'\"{}\"'"),
    *("'{\"a\": 1e300}'", "'{\"a\": [-1.1e300]}'", '\'{"a": [{"b": 1e301}]}\'', '\'{"a": "1e301"}\''),
    *(f"""concat('{{"a": ', {DEEP.format(depth)}, '}}')""" for depth in (97, 98, 99, 100, 150)),
]
FOLLOW_UPS = [
    *("'null'", "'7'", "'[]'", "'{}'", "'{\"task\": null}'", '\'{"task": "t"}\''),
    *(f"""'{{"task": "t", "priority": {number}}}'""" for number in (-11, -10, 10, 11, '"5"', "null")),
    *(f"""'{{"task": "t", "priority": 0, "max_attempts": {number}}}'""" for number in (0, 1, 1000000000, 1000000001)),
    """'{"priority": 0, "max_attempts": 1}'""",
]
NUMBERS = {
    "bigint": ["0", "1", "-1", "9000000000000000000", "9000000000000000001"],
    "smallint": ["-11", "-10", "0", "10", "11", "-32768", "32767"],
    "integer": ["-1", "0", "1", "1000000000", "1000000001", "2147483647"],
    "double precision": ["0", "1", "0.5", "-1e-9", "1.001", "'NaN'", "'infinity'", "'-infinity'"],
}
GATES = ["'{}'", "'{a}'", "'{a,b,c,d,e,f}'", "'{a,b,c,d,e,f,g}'", "'{{a},{b}}'", "'{a,NULL}'", "'{b}'"]
COLUMNS: dict[str, tuple[str, list[str]]] = {
    "id": ("bigint", NUMBERS["bigint"]),
    "priority": ("smallint", NUMBERS["smallint"]),
    "attempt": ("integer", NUMBERS["integer"]),
    "max_attempts": ("integer", NUMBERS["integer"]),
    "progress": ("double precision", NUMBERS["double precision"]),
    "gates": ("text[]", GATES),
    "ordered_by": ("text", ["'a'", "'c'"]),
    "on_failure": ("jsonb", FOLLOW_UPS),
    "state": ("text", ["'scheduled'", "'queued'", "'running'", "'succeeded'", "'failed'", "'cancelled'", "''", "'s'"]),
    "outcome": ("text", ["'succeeded'", "'lost'", "'enqueued'", "'missed'", "'skipped'", "''"]),
    "catch_up": ("text", ["'skip'", "'latest'", "'all'", "'allow'"]),
    "overlap": ("text", ["'skip'", "'latest'", "'all'", "'allow'"]),
    **dict.fromkeys(("headers", "args", "declared", "declared_values", "details"), ("jsonb", DOCUMENTS)),
    **dict.fromkeys(("queues", "set_aside"), ("jsonb", DOCUMENTS)),
}


def values_of(column: str) -> tuple[str, list[str]]:
    return COLUMNS.get(column, ("timestamptz", MOMENTS))


def columns_of(rule: Rule) -> list[str]:
    known = {*COLUMNS, *re.findall(r"\w+_(?:at|for|since|period|until)\b", rule.before), "until", "at"}
    return sorted(known & set(re.findall(r"\w+", re.sub(r"'[^']*'", "", rule.before))))


def differing(connection: Connection, rule: Rule) -> list[object]:
    """Rows of edge values, NULL among them, which one of both allows and the other does not."""
    sources = []
    for column in columns_of(rule):
        kind, values = values_of(column)
        cast = [f"CAST({value} AS {kind})" for value in (*values, "NULL")]
        sources.append(f"unnest(ARRAY[{', '.join(cast)}]) AS {column}" if "[]" not in kind else rows(cast, column))
    both = f"SELECT ({rule.before}) IS NOT FALSE AS old, ({rule.after}) IS NOT FALSE AS new, *"
    query = f"SELECT * FROM ({both} FROM {', '.join(sources)}) AS tried WHERE old <> new"
    return list(connection.exec_driver_sql(query.replace("%", "%%")).all())


def rows(values: list[str], column: str) -> str:
    return f"(VALUES {', '.join(f'({value})' for value in values)}) AS of_{column} ({column})"


@pytest.mark.parametrize(
    ("rule"), [pytest.param(rule, id=f"{noun}.{rule.name}") for noun, rules in RULES.items() for rule in rules]
)
def test_a_rule_allows_what_it_allowed(rule: Rule, module_engine: Engine) -> None:
    with module_engine.connect() as connection:
        assert columns_of(rule)
        assert differing(connection, rule) == []


def at_version_one(engine: Engine) -> None:
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        with context.begin_transaction():
            downgrade(Operations(context), from_=LATEST, to=1)


def definitions(engine: Engine) -> dict[str, str]:
    query = text(
        "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint "
        "WHERE contype = 'c' AND conrelid::regclass::text LIKE 'sqla%'"
    )
    with engine.connect() as connection:
        return {str(name): str(definition) for name, definition in connection.execute(query)}


def test_a_downgrade_says_them_as_version_one_did(database: Engine, engine: Engine) -> None:
    at_version_one(database)
    back = definitions(database)
    with database.begin() as connection:
        shop.Base.metadata.drop_all(connection)
    with database.connect() as connection:
        context = MigrationContext.configure(connection)
        with context.begin_transaction():
            upgrade(Operations(context), from_=0, to=1)
    assert back == definitions(database)


@pytest.mark.slow
def test_writers_go_on_while_the_rules_change(database: Engine) -> None:
    """A transaction that has written a job holds up the change, and the change holds up nobody."""
    at_version_one(database)
    with Session(database) as business:
        shop.mark.enqueue(business, n=0)
        business.flush()
        changing = threading.Thread(target=migrate, args=(database, shop.jobs.models))
        changing.start()
        waits = text(
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%lock_timeout%' AND pid <> pg_backend_pid()"
            " AND datname = current_database()"
        )
        with database.connect().execution_options(isolation_level="AUTOCOMMIT") as beside:
            wait_until(lambda: beside.scalar(waits), message="the change has not begun")
        with Session(database) as other:
            other.execute(text("SET lock_timeout = '2s'"))
            for n in range(1, 200):
                shop.mark.enqueue(other, n=n)
                other.commit()
        assert changing.is_alive(), "it waits for the first transaction"
        business.commit()
    changing.join(30)
    assert not changing.is_alive()
    assert all("NOT VALID" not in rule for rule in definitions(database).values())
    assert shop.jobs.worker().drain() == 200
    assert states(database) == {"succeeded": 200}
