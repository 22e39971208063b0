"""What a database is compared with, and which versions of the tables code runs on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from click.testing import CliRunner
from sqlalchemy import Connection, Engine, ForeignKey, Index, Text, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, registry

from sqla_jobs import ConfigurationError, JobMixin, Jobs
from sqla_jobs.cli.main import main
from sqla_jobs.migrations import upgrade
from sqla_jobs.migrations.comparison import Facts, compare, read_tables
from sqla_jobs.models import version
from sqla_jobs.models.version import LATEST, comment_of
from tests import shop


class Base(DeclarativeBase):
    pass


class Tenant(Base):
    __tablename__ = "tenants"
    id: Mapped[int] = mapped_column(primary_key=True)


class TenantJob(JobMixin):
    tenant_id: Mapped[int | None] = mapped_column(ForeignKey("tenants.id"))
    note: Mapped[str | None] = mapped_column(Text)


jobs = Jobs(Base, job_class=TenantJob, schema="ops")
Index("jobs_of_tenants", jobs.Job.tenant_id)
Index("jobs_by_task", jobs.Job.task)


@pytest.fixture(scope="module")
def tables(module_engine: Engine) -> Engine:
    """An engine on a database with the tables of this module."""
    with module_engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA ops"))
        Base.metadata.create_all(connection)
    return module_engine


@pytest.fixture
def connection(tables: Engine) -> Iterator[Connection]:
    """In a transaction that is rolled back, with these tables."""
    with tables.connect() as connection:
        yield connection
        connection.rollback()


DIFFERENCES = {
    "DROP TABLE ops.sqla_audit": "table ops.sqla_audit is missing",
    "CREATE TABLE ops.sqla_leases ()": "table ops.sqla_leases is not expected",
    "ALTER TABLE ops.sqla_jobs DROP COLUMN progress": (
        "ops.sqla_jobs: column progress is missing, expected double precision NULL"
    ),
    "ALTER TABLE ops.sqla_jobs DROP COLUMN note": (
        "ops.sqla_jobs: column note is missing, expected your job_class has it, so one of your own migrations adds it"
    ),
    "ALTER TABLE ops.sqla_jobs ADD extra int": "ops.sqla_jobs: column extra is not expected: integer NULL",
    "ALTER TABLE ops.sqla_runs ALTER attempt TYPE bigint": (
        "ops.sqla_runs: type of column attempt is bigint, expected integer"
    ),
    "ALTER TABLE ops.sqla_jobs ALTER queue SET DEFAULT 'mail'": (
        "ops.sqla_jobs: default of column queue is 'mail'::text, expected 'default'::text"
    ),
    "ALTER TABLE ops.sqla_jobs ALTER queue DROP NOT NULL": (
        "ops.sqla_jobs: nullability of column queue is NULL, expected NOT NULL"
    ),
    "ALTER SEQUENCE ops.sqla_jobs_position_seq CACHE 20": (
        "ops.sqla_jobs: default of column position is identity of sqla_jobs_position_seq, cache 20, by 1, "
        "expected identity of sqla_jobs_position_seq, cache 1, by 1"
    ),
    "CREATE INDEX mine ON ops.sqla_runs (attempt)": (
        "ops.sqla_runs: index mine is not expected: CREATE INDEX mine USING btree (attempt)"
    ),
    "DROP INDEX ops.sqla_jobs_scheduled; CREATE INDEX sqla_jobs_scheduled ON ops.sqla_jobs (run_at)": (
        "ops.sqla_jobs: index sqla_jobs_scheduled is CREATE INDEX sqla_jobs_scheduled USING btree (run_at), expected "
        "CREATE INDEX sqla_jobs_scheduled USING btree (run_at) WHERE (state = 'scheduled'::text)"
    ),
    "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ops.sqla_runs_job_id'::regclass": (
        "ops.sqla_runs: index sqla_runs_job_id is CREATE INDEX sqla_runs_job_id USING btree (job_id) (not valid: its "
        "build failed, so drop and build it again), expected CREATE INDEX sqla_runs_job_id USING btree (job_id)"
    ),
    "ALTER TABLE ops.sqla_jobs DROP CONSTRAINT sqla_jobs_priority_check": (
        "ops.sqla_jobs: constraint sqla_jobs_priority_check is missing, "
        "expected CHECK (('[-10,11)'::int4range @> (priority)::integer))"
    ),
    f"COMMENT ON TABLE ops.sqla_jobs IS '{comment_of(7)}'": f"ops.sqla_jobs: version is 7, expected {LATEST}",
}


@pytest.mark.parametrize(("change", "told"), DIFFERENCES.items())
def test_each_difference_is_named(change: str, told: str, connection: Connection) -> None:
    connection.execute(text(change))
    found = [str(one) for one in compare(connection, jobs._models)]
    assert told in found
    assert len(found) <= 1 + ("DROP COLUMN" in change)


def test_what_the_application_adds_is_its_own_business(connection: Connection) -> None:
    for statement in (
        "CREATE TABLE ops.sqla_mail_jobs ()",
        "CREATE TABLE ops.other ()",
        "CREATE INDEX undeclared ON ops.sqla_jobs (note, task)",
        "ALTER TABLE ops.sqla_jobs ADD CONSTRAINT short CHECK (length(note) < 100)",
        f"COMMENT ON TABLE ops.sqla_jobs IS 'Ask Kim. {comment_of(LATEST)}'",
    ):
        connection.execute(text(statement))
    assert compare(connection, jobs._models) == []


def say(engine: Engine, comment: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(f"COMMENT ON TABLE sqla_jobs IS '{comment}'"))


VERSIONS = {"too new": comment_of(LATEST + 2), "unsaid": ""}
STARTS: dict[str, Callable[[], Any]] = {
    "worker": lambda: shop.jobs.worker().drain(),
    "clock": lambda: shop.jobs.clock().start(),
    "tick": lambda: shop.jobs.clock().tick(),
}


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
@pytest.mark.parametrize("comment", VERSIONS.values(), ids=VERSIONS)
def test_nothing_starts_on_tables_of_a_version_it_does_not_know(
    comment: str, start: Callable[[], Any], database: Engine
) -> None:
    say(database, comment)
    with pytest.raises(ConfigurationError, match="version"):
        start()


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_later_code_does_not_start_on_tables_of_an_earlier_version(
    start: Callable[[], Any], database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(version, "LATEST", LATEST + 1)
    with pytest.raises(ConfigurationError, match=f"version {LATEST},"):
        start()


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_nothing_starts_without_tables(start: Callable[[], Any], engine: Engine) -> None:
    shop.jobs.bind(engine)
    with pytest.raises(ConfigurationError, match="sqla_jobs"):
        start()


@pytest.mark.slow
def test_a_lost_comment_is_written_again_only_where_the_tables_fit(database: Engine) -> None:
    def migrate() -> str:
        return CliRunner().invoke(main, ["migrate", "tests.shop:jobs"]).output

    with database.begin() as connection:
        connection.execute(
            text("COMMENT ON TABLE sqla_jobs IS NULL; ALTER TABLE sqla_jobs DROP COLUMN progress_message")
        )
    assert "column progress_message is missing" in migrate()
    with database.begin() as connection:
        connection.execute(text("ALTER TABLE sqla_jobs ADD progress_message text"))
    assert f"version {LATEST}" in migrate()
    assert shop.jobs.worker().drain() == 0


# --- the rule for rolling upgrades: code of version N runs on tables of version N and N + 1 ---


def breaks(before: dict[str, Facts], after: dict[str, Facts]) -> list[str]:
    """What in `after` code that was written for `before` may stumble over."""
    found: list[str] = []
    for noun, facts in before.items():
        if noun not in after:
            found.append(f"{noun} is gone")
            continue
        for key, was in facts.items():
            now = after[noun].get(key)
            kind, name = key
            if kind == "column" and now is None:
                found.append(f"{noun}.{name} is gone")
            elif kind == "column" and now is not None:
                found += [
                    f"{noun}.{name} has another {facet}" for facet in ("type", "default") if now[facet] != was[facet]
                ]
                if now["nullability"] != was["nullability"]:
                    found.append(f"{noun}.{name} is {now['nullability']} now")
            elif kind == "index" and "UNIQUE" in was["definition"] and now != was:
                found.append(f"the unique index {name} is gone or another, which ON CONFLICT may name")
        for (kind, name), now in after[noun].items():
            if (kind, name) in facts:
                continue
            if kind == "column" and now["nullability"] == "NOT NULL" and now["default"] == "none":
                found.append(f"{noun}.{name} has to be given, and the version before does not know it")
            if kind == "index" and "UNIQUE" in now["definition"]:
                found.append(f"the unique index {name} forbids what was allowed")
            if kind == "constraint":
                found.append(f"the constraint {name} forbids what was allowed")
        for (kind, name), was in facts.items():
            if kind == "constraint" and (kind, name) in after[noun] and after[noun][kind, name] != was:
                found.append(f"the constraint {name} is another")
    return found


WIDENED = {
    "the constraint sqla_jobs_args_check is another": "jobs that run have a process, ended ones finished_at",
    "the constraint sqla_jobs_attempts_check is another": "it is shorter",
    "the constraint sqla_jobs_gates_check is another": "it is shorter",
}
"""Constraints of the newest version that forbid nothing more than before, and why that is certain."""


def at_version(engine: Engine, number: int) -> dict[str, Facts]:
    plain = Jobs(registry())
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        upgrade(Operations(context), from_=0, to=number)
        tables = read_tables(connection, plain._models)
        connection.rollback()
    return tables


def test_code_of_the_version_before_runs_on_the_tables_of_the_newest(engine: Engine) -> None:
    broken = breaks(at_version(engine, LATEST - 1), at_version(engine, LATEST))
    assert [one for one in broken if one not in WIDENED] == []


@pytest.mark.slow
def test_workers_and_clocks_go_on_with_tables_of_the_next_version(database: Engine) -> None:
    """One that keeps the rule: a column, an index and a table more."""
    with database.begin() as connection:
        connection.execute(text("ALTER TABLE sqla_jobs ADD remark text NOT NULL DEFAULT ''"))
        connection.execute(text("ALTER TABLE sqla_runs ADD note text"))
        connection.execute(text("CREATE INDEX sqla_runs_note ON sqla_runs (note); CREATE TABLE sqla_notes (id int)"))
    say(database, comment_of(LATEST + 1))
    with Session(database) as session:
        shop.write.enqueue(session, n=1)
        shop.write.enqueue_many(session, [{"n": 2}, {"n": 3}])
        session.commit()
    shop.jobs.clock().tick()
    assert shop.jobs.worker().drain() == 3


def test_a_plain_job_pays_for_few_indexes_and_short_checks(engine: Engine) -> None:
    """Each statement that writes a job opens all its table's indexes and parses all its CHECKs."""
    with engine.connect() as connection:
        upgrade(Operations(MigrationContext.configure(connection)), from_=0, to=LATEST)
        of_jobs = "FROM {} WHERE {} = CAST('sqla_jobs' AS regclass)"
        indexes = connection.scalar(text(f"SELECT count(*) {of_jobs.format('pg_index', 'indrelid')}"))
        checks = of_jobs.format("pg_constraint", "conrelid")
        size = connection.scalar(text(f"SELECT sum(length(CAST(conbin AS text))) {checks} AND contype = 'c'"))
    assert (indexes <= 12, size <= 5000) == (True, True), (indexes, size)
