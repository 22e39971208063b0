"""A parent knows its database from its children alone: it sends what they would, and connects as they do."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import Engine, MetaData, create_engine, func, insert, make_url, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import DeclarativeBase, registry

from sqla_jobs.database.engines import for_itself
from sqla_jobs.models.columns import JobMixin
from sqla_jobs.models.mapping import map_models
from sqla_jobs.queries import Queries
from sqla_jobs.queries.statement import Statement
from sqla_jobs.runtime.counters import Counters
from sqla_jobs.runtime.set_aside import SetAside
from sqla_jobs.runtime.settings import LeaseSettings
from sqla_jobs.supervisor.database import Database
from sqla_jobs.supervisor.heartbeat import AbandonedWork, ParentHeartbeat
from sqla_jobs.supervisor.messages import Address, TableNames
from sqla_jobs.supervisor.roster import Roster
from tests.shop import jobs

SENT = (
    *("beat", "heartbeats", "delete_expired", "sign_off", "rescue", "to_rescue", "leases", "cancel_requests"),
    *("finish_any", "show_set_aside", "show_stalled", "promote", "to_promote", "poll", "unknown_to"),
)


class OpsBase(DeclarativeBase):
    metadata = MetaData(schema="ops")


@pytest.mark.parametrize(
    ("models", "names"),
    [
        (jobs._models, TableNames(None, "sqla_", "public")),  # with a column of its own
        (map_models(registry(), "other schema", "my_", JobMixin), TableNames("other schema", "my_", "other schema")),
        (map_models(OpsBase, None, "", JobMixin), TableNames("ops", "", None)),
    ],
    ids=["own column", "schema", "metadata"],
)
def test_a_parent_sends_the_statements_that_its_child_would(models: object, names: TableNames) -> None:
    of_child: Queries = Queries(models, names.found_in)  # type: ignore[arg-type]
    parent = Database(Address(names, {}, {}), patience=1.0)

    dialect = create_engine("postgresql+psycopg://").dialect

    def sent_by(queries: Queries) -> dict[str, object]:
        statements: dict[str, Statement] = {name: getattr(queries, name) for name in SENT}
        return {name: str(statement.sql().compile(dialect=dialect)) for name, statement in statements.items()}

    assert sent_by(parent.queries) == sent_by(of_child)
    assert parent.channel == models.channel  # type: ignore[attr-defined]


@pytest.fixture
def parent(database_url: str) -> Iterator[Database]:
    dsn = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    parent = Database(Address(TableNames(None, "sqla_"), conninfo_to_dict(dsn), {}), patience=5.0)
    yield parent
    parent.engine.dispose()


def pid_of(parent: Database) -> int:
    with parent.engine.begin() as connection:
        return int(connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one())


def test_a_lost_connection_is_made_anew_to_the_latest_address(parent: Database, engine: Engine) -> None:
    pid = pid_of(parent)
    parent.address = Address(parent.address.tables, {**parent.address.parameters, "application_name": "new"}, {})
    assert pid_of(parent) == pid
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
    with pytest.raises(OperationalError):
        pid_of(parent)
    with parent.engine.begin() as connection:
        assert connection.exec_driver_sql("SHOW application_name").scalar_one() == "new"


def test_others_are_told_when_a_process_is_gone_that_held_nothing(parent: Database, database: Engine) -> None:
    """It may have been the only one that was told of some jobs."""
    process_id = uuid.uuid4()
    with database.begin() as connection:
        connection.execute(insert(jobs.Process).values(id=process_id, kind="worker"))
    heartbeat = ParentHeartbeat(parent, LeaseSettings(5.0, 30.0), SetAside(), Roster(), Counters())
    with for_itself(parent.engine) as listening:
        listening.execute(sql.SQL("LISTEN {}").format(sql.Identifier(parent.channel)))
        heartbeat.start()
        heartbeat.settle(AbandonedWork(process_id, []))
        assert [told.payload for told in listening.notifies(timeout=10, stop_after=1)] == [""]
    assert heartbeat.close(5.0)
    with database.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(jobs.Process)) == 0
