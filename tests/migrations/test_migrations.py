"""The tables in an application's history: by the branch, by revisions of its own, and without Alembic."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Engine, create_engine, select, text
from sqlalchemy.orm import registry
from sqlalchemy.schema import CreateSchema

from sqla_jobs import ConfigurationError, Jobs
from sqla_jobs.migrations import LATEST, downgrade, upgrade
from sqla_jobs.migrations.names import Names
from sqla_jobs.migrations.online import build_index
from sqla_jobs.migrations.running import STEPS
from sqla_jobs.testing.databases import new_database
from tests.application import JOBS, Application

CATALOG = r"""
SELECT 'schema', nspname, obj_description(oid, 'pg_namespace') FROM pg_namespace
WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
UNION ALL
SELECT 'relation ' || relkind::text, c.oid::regclass::text, obj_description(c.oid, 'pg_class') FROM pg_class c
WHERE relnamespace::regnamespace::text !~ '^(pg_|information_schema)' AND relname !~ 'alembic_version'
UNION ALL
SELECT 'column', attrelid::regclass::text || '.' || attname, concat_ws(' ', format_type(atttypid, atttypmod),
    attnotnull, attidentity, pg_get_expr(adbin, adrelid), col_description(attrelid, attnum))
FROM pg_attribute LEFT JOIN pg_attrdef ON (adrelid, adnum) = (attrelid, attnum)
JOIN pg_class c ON c.oid = attrelid WHERE attnum > 0 AND NOT attisdropped AND c.relkind = 'r'
AND relnamespace::regnamespace::text !~ '^(pg_|information_schema)' AND relname !~ 'alembic_version'
UNION ALL
SELECT 'constraint', conrelid::regclass::text || '.' || conname, pg_get_constraintdef(oid) FROM pg_constraint
WHERE connamespace::regnamespace::text !~ '^(pg_|information_schema)' AND conrelid::regclass::text !~ 'alembic_version'
UNION ALL
SELECT 'index', indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index
JOIN pg_class c ON c.oid = indrelid
WHERE relnamespace::regnamespace::text !~ '^(pg_|information_schema)' AND relname !~ 'alembic_version'
UNION ALL
SELECT 'sequence', seqrelid::regclass::text, concat_ws(' ', seqtypid::regtype, seqstart, seqincrement, seqmax, seqmin,
    seqcache, seqcycle, (SELECT refobjid::regclass || '.' || refobjsubid FROM pg_depend
                         WHERE objid = seqrelid AND deptype IN ('a', 'i')))
FROM pg_sequence
ORDER BY 1, 2
"""
"""All that an application has in a database, in the server's words."""

VARIANTS: dict[str, dict[str, str]] = {
    "schema": {"options": 'schema="ops"'},
    "all": {"options": 'prefix=""', "metadata": 'schema="Our Shop", naming_convention=CONVENTION'},
}


def catalog(url: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        return connection.execute(CATALOG.encode()).fetchall()


def execute(url: str, sql: str) -> None:
    """As psql does: one statement after another, each committed unless it stands between BEGIN and COMMIT."""
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        for statement in sql.split(";\n\n"):
            connection.execute(statement.encode())


def objects(url: str) -> list[tuple[Any, ...]]:
    """The catalog without comments of schemas: who makes one before `create_all` need not say so there."""
    return [row for row in catalog(url) if row[0] != "schema"]


@pytest.fixture
def app(tmp_path: Path, database_url: str) -> Application:
    """An application with a history of its own, which has no jobs yet; its database is empty."""
    app = Application(tmp_path, database_url)
    app.write_shop()
    app.begin_history()
    return app


def fresh(folder: Path, url: str, variant: dict[str, str], template: str = "generic") -> Application:
    """An application of which one revision has been run; then the jobs were added to its code."""
    app = Application(folder, url)
    metadata = variant.get("metadata", "")
    app.write_shop(metadata=metadata)
    if "schema" in metadata:
        execute(url, 'CREATE SCHEMA "Our Shop"')
    is_schema = "schema" in str(variant)
    app.begin_history(template=template, configure="include_schemas=True" if is_schema else "")
    app.alembic("revision", "--autogenerate", "-m", "orders")
    app.alembic("upgrade", "head")
    app.write_shop(metadata=metadata, more=JOBS.format(options=variant.get("options", "")))
    return app


LOCATIONS = ("%(here)s/alembic/versions", "sqla_jobs:migrations/versions")


def by_the_branch(app: Application) -> None:
    app.locate_revisions(*LOCATIONS)
    by_merging(app)


def by_merging(app: Application) -> None:
    app.alembic("upgrade", "heads")
    app.alembic("merge", "heads")
    app.alembic("upgrade", "head")


def by_revisions_of_its_own(app: Application) -> None:
    app.alembic("revision", "-m", "sqla_jobs")
    (path,) = (path for path in app.revisions() if "sqla_jobs" in path.name)
    jobs = app.shop().jobs
    names = f"schema={jobs.Job.__table__.schema!r}, prefix={jobs._models.prefix!r})"
    path.write_text(
        path.read_text().partition("def upgrade")[0]
        + "from sqla_jobs import migrations\n\n"
        + f"def upgrade():\n    migrations.upgrade(op, from_=0, to={LATEST}, {names}\n\n"
        + f"def downgrade():\n    migrations.downgrade(op, from_={LATEST}, to=0, {names}\n"
    )
    app.alembic("upgrade", "head")


def create(shop: Any, url: str) -> None:
    """`create_all` on an empty database."""
    engine = create_engine(url)
    with engine.begin() as connection:
        for schema in {table.schema for table in shop.Base.metadata.tables.values()} - {None}:
            connection.execute(CreateSchema(schema))
        shop.Base.metadata.create_all(connection)
    engine.dispose()


def run_a_job(shop: Any) -> None:
    with shop.jobs._binding().transaction() as session:
        shop.double.enqueue(session, n=21)
    assert shop.jobs.worker().drain() == 1
    with shop.jobs._binding().transaction() as session:
        assert session.scalars(select(shop.jobs.Run.result)).all() == [42]


TABLE = """
def upgrade() -> None:
    op.execute("CREATE TABLE {name} (id int)")


def downgrade() -> None:
    op.execute("DROP TABLE {name}")
"""


def tables(url: str) -> set[str]:
    return {str(name) for kind, name, _ in catalog(url) if kind == "relation r"}


@pytest.fixture
def merged(tmp_path: Path, database_url: str) -> Application:
    """An application that took the branch, then made a table of its own, `later`."""
    app = fresh(tmp_path, database_url, {})
    by_the_branch(app)
    app.alembic("revision", "-m", "later")
    (later,) = (path for path in app.revisions() if "later" in path.name)
    later.write_text(later.read_text().partition("def upgrade")[0] + TABLE.format(name="later"))
    app.alembic("upgrade", "head")
    assert {"orders", "sqla_jobs", "later"} <= tables(database_url)
    return app


@pytest.mark.slow
def test_a_downgrade_after_a_merge_undoes_what_the_docs_say(merged: Application) -> None:
    everything = tables(merged.url)
    for command in ("-1", "sqla_jobs@-1"):
        merged.alembic("downgrade", command)
        assert tables(merged.url) == everything - {"later"}
        merged.alembic("upgrade", "head")
    merged.alembic("downgrade", "sqla_jobs@base")
    assert tables(merged.url) == {"orders"}
    merged.alembic("upgrade", "head")
    assert tables(merged.url) == everything


@pytest.mark.parametrize(
    ("variant", "way"),
    [
        ("all", by_the_branch),
        ("all", by_revisions_of_its_own),
    ],
)
@pytest.mark.slow
def test_a_migrated_database_is_a_created_one_and_alembic_finds_nothing_to_do(
    way: Callable[[Application], None], variant: str, tmp_path: Path, database_url: str, server_url: str
) -> None:
    app = fresh(tmp_path, database_url, VARIANTS[variant])
    before = catalog(database_url)
    way(app)
    assert "No new upgrade operations" in app.alembic("check")
    app.sqla_jobs("migrate", "shop:jobs", "--check")
    run_a_job(app.shop())

    with new_database(server_url) as created:
        other = Application(tmp_path, created)
        create(other.shop(), created)
        assert objects(created) == objects(database_url)
        other.sqla_jobs("migrate", "shop:jobs", "--check")
        other.alembic("stamp", "heads")
        assert "No new upgrade operations" in other.alembic("check")

    if way is by_the_branch:
        app.alembic("downgrade", "sqla_jobs@base")
    else:
        app.alembic("downgrade", "-1")
    assert catalog(database_url) == before


@pytest.mark.slow
def test_columns_of_the_application_are_found_by_its_own_autogenerate(tmp_path: Path, database_url: str) -> None:
    app = fresh(tmp_path, database_url, {})
    by_the_branch(app)
    own = (
        "class MyJob(JobMixin):\n"
        "    order_id: Mapped[int | None] = mapped_column(ForeignKey('orders.id', name='job_of_order'), index=True)\n"
        "    origin: Mapped[str] = mapped_column(server_default='web')\n"
    )
    app.write_shop(more=own + JOBS.format(options="job_class=MyJob"))
    told = app.sqla_jobs("migrate", "shop:jobs", "--check", code=1)
    assert "column order_id is missing" in told
    assert "column origin is missing" in told
    app.alembic("revision", "--autogenerate", "-m", "own columns")
    app.alembic("upgrade", "head")
    assert "No new upgrade operations" in app.alembic("check")
    app.sqla_jobs("migrate", "shop:jobs", "--check")


@pytest.mark.slow
def test_sql_written_offline_makes_the_same_tables(tmp_path: Path, database_url: str, server_url: str) -> None:
    app = fresh(tmp_path, database_url, VARIANTS["schema"])
    with new_database(server_url) as other:
        by_the_branch(Application(tmp_path, other))
        offline = app.folder / "alembic/env.py"
        offline.write_text(offline.read_text().replace("compare_server_default=True, ", ""))
        sql = app.alembic("upgrade", "heads", "--sql")
        with new_database(server_url) as third:
            execute(third, sql)
            assert catalog(third) == catalog(other)


@pytest.fixture
def jobs(engine: Engine) -> Jobs[Any]:
    """On an empty database, with a schema that has to be quoted."""
    jobs = Jobs(registry(), schema="Our Jobs", prefix="x_")
    jobs.bind(engine)
    return jobs


@pytest.mark.slow
def test_the_sql_of_migrate_makes_the_same_tables(tmp_path: Path, database_url: str, server_url: str) -> None:
    app = Application(tmp_path, database_url)
    app.write_shop(more=JOBS.format(options="schema='ops'"))
    sql = app.sqla_jobs("migrate", "shop:jobs", "--sql")
    assert len(app.sqla_jobs("migrate", "shop:jobs").splitlines()) == len(STEPS)
    assert len(app.sqla_jobs("migrate", "shop:jobs").splitlines()) == 1
    assert app.sqla_jobs("migrate", "shop:jobs", "--sql") == ""
    with new_database(server_url) as other:
        execute(other, sql)
        assert catalog(other) == catalog(database_url)


def test_a_database_that_alembic_keeps_is_not_upgraded_behind_its_back(app: Application) -> None:
    app.alembic("revision", "--autogenerate", "-m", "orders")
    app.alembic("upgrade", "head")
    app.write_shop(more=JOBS.format(options=""))
    refusal = app.sqla_jobs("migrate", "shop:jobs", code=1)
    assert "public.alembic_version" in refusal
    assert "CREATE TABLE sqla_jobs" in app.sqla_jobs("migrate", "shop:jobs", "--sql")


def run(engine: Engine, step: Callable[[Operations], None]) -> None:
    """A step in a migration of its own."""
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        with context.begin_transaction():
            step(Operations(context))


WRONG: dict[str, Callable[[Operations], None]] = {
    "later": lambda op: upgrade(op, from_=0, to=LATEST + 1),
    "down": lambda op: upgrade(op, from_=2, to=0),
    "up": lambda op: downgrade(op, from_=0, to=2),
    "prefix": lambda op: upgrade(op, from_=0, to=2, prefix="My-"),
    "schema": lambda op: upgrade(op, from_=0, to=2, schema=""),
}


@pytest.mark.parametrize("step", WRONG.values(), ids=WRONG)
def test_versions_and_names_that_cannot_be_are_refused(step: Callable[[Operations], None], engine: Engine) -> None:
    with pytest.raises(ConfigurationError):
        run(engine, step)


def test_a_downgrade_leaves_a_schema_that_it_did_not_make_or_that_is_used(engine: Engine, database_url: str) -> None:
    def up(op: Operations) -> None:
        upgrade(op, from_=0, to=LATEST, schema="ops")

    def down(op: Operations) -> None:
        downgrade(op, from_=LATEST, to=0, schema="ops")

    def schemas() -> list[str]:
        return [row[1] for row in catalog(database_url) if row[0] == "schema"]

    for statement, left in (
        ("SELECT 1", ["public"]),
        ("CREATE SCHEMA ops", ["ops", "public"]),
        ("DROP SCHEMA ops", ["public"]),
    ):
        with engine.begin() as connection:
            connection.execute(text(statement))
        run(engine, up)
        run(engine, down)
        assert schemas() == left
    run(engine, up)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE ops.other ()"))
    run(engine, down)
    assert schemas() == ["ops", "public"]


def test_an_index_is_built_while_a_writer_has_the_table(engine: Engine) -> None:
    """CREATE INDEX without CONCURRENTLY would wait for the writer, and every later writer for it."""
    run(engine, lambda op: upgrade(op, from_=0, to=2))

    def build(op: Operations) -> None:
        names = Names.of(op, None, "sqla_")
        op.execute("SET LOCAL statement_timeout = '20s'")
        build_index(op, names, "runs_finished", "runs (finished_at) WHERE outcome <> 'succeeded'")
        build_index(op, names, "runs_finished", "runs (finished_at)")

    def definition() -> Any:
        with engine.connect() as connection:
            query = """
                SELECT pg_get_indexdef(indexrelid) FROM pg_index
                WHERE indexrelid = to_regclass('sqla_runs_finished') AND indisvalid
            """
            return connection.scalar(text(query))

    with engine.connect() as connection:
        connection.execute(text("INSERT INTO sqla_runs (job_id, attempt, outcome) VALUES (1, 1, 'failed')"))
        thread = threading.Thread(target=run, args=(engine, build))
        thread.start()
        with engine.connect() as other:
            waits = text("SELECT count(*) FROM pg_stat_progress_create_index WHERE datname = current_database()")
            while not other.scalar(waits):
                other.rollback()
            other.execute(text("SET LOCAL lock_timeout = '1s'"))
            other.execute(text("INSERT INTO sqla_runs (job_id, attempt, outcome) VALUES (2, 1, 'failed')"))
            other.commit()
        connection.commit()
    thread.join(20)
    assert definition() == "CREATE INDEX sqla_runs_finished ON public.sqla_runs USING btree (finished_at)"


def test_an_environment_that_has_begun_a_transaction_is_told_to_commit_it(engine: Engine) -> None:
    run(engine, lambda op: upgrade(op, from_=0, to=2))
    with engine.connect() as connection:
        connection.execute(text("SET lock_timeout = 4000"))
        context = MigrationContext.configure(connection)
        with pytest.raises(ConfigurationError, match="commit"), context.begin_transaction():
            upgrade(Operations(context), from_=2, to=LATEST)
    run(engine, lambda op: upgrade(op, from_=2, to=LATEST))
