"""The parent sends by psycopg what a child has rendered: it gets the same, and its connection is as it should be."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import Connection, Engine, make_url, text

from sqla_jobs.calls.values import Among, Lease, RunEnd
from sqla_jobs.queries import Queries
from sqla_jobs.rules.outcomes import Failure, Outcome
from sqla_jobs.supervisor.database import Database, DatabaseInfo
from sqla_jobs.supervisor.messages import Address
from sqla_jobs.supervisor.statements import ParentCalls, rendered_for_parent
from tests.shop import jobs

QUERIES = Queries(jobs.models)
CALLS = ParentCalls(rendered_for_parent(QUERIES, "channel"))
LIVE, HELD = uuid.UUID(int=1), uuid.UUID(int=2)
FAILED = Outcome.failed(Failure("KilledError", 'killed, "by" {its} \\ parent: ä', "trace\nback"))
LOST = Outcome.lost(Failure("Lost", "it died"))
ROWS = """
    INSERT INTO sqla_processes (id, kind, queues, lease) VALUES
      ('{LIVE}', 'worker', '{{"default": 2}}', 30), ('{HELD}', 'worker', '{{"other": 2}}', 7.5);
    INSERT INTO sqla_jobs (id, task, queue, args, state, attempt, process_id, current_run_id, started_at,
                           cancel_requested_at, kill_requested, run_at) VALUES
      (1, 'mark', 'default', '{{}}', 'running', 1, '{LIVE}', 1, now(), NULL, false, now()),
      (2, 'mark', 'default', '{{}}', 'running', 1, '{LIVE}', 2, now(), now(), true, now()),
      (3, 'mark', 'default', '{{}}', 'running', 25, '{GONE}', 3, now(), NULL, false, now()),
      (4, 'mark', 'default', '{{}}', 'running', 1, '{GONE}', 4, now(), NULL, false, now()),
      (5, 'mark', 'default', '{{}}', 'scheduled', 0, NULL, NULL, NULL, NULL, false, now() - interval '1 second'),
      (6, 'mark', 'default', '{{}}', 'scheduled', 0, NULL, NULL, NULL, NULL, false, now() + interval '1 hour'),
      (7, 'mark', 'default', '{{}}', 'queued', 0, NULL, NULL, NULL, NULL, false, now()),
      (8, '50% "odd"', 'default', '{{}}', 'queued', 0, NULL, NULL, NULL, NULL, false, now());
""".format(LIVE=LIVE, HELD=HELD, GONE=uuid.UUID(int=3))
LEASES = [Lease(1, 1, LIVE), Lease(2, 2, LIVE), Lease(3, 99, LIVE)]
ENDS = [RunEnd(lease, outcome, 0.1, 0.2) for lease, outcome in zip(LEASES, (FAILED, LOST, LOST), strict=True)]


def soon(promotion: Any) -> Any:
    """Without the seconds that go by."""
    return promotion._replace(due_in=round(promotion.due_in, -2))


def signed_off(calls: Any, connection: Any) -> Any:
    return [calls.sign_off(connection, one) for one in (HELD, uuid.UUID(int=9))]


ASKED: dict[str, Callable[[Any, Any], Any]] = {
    "beat": lambda calls, c: calls.beat(c, [LIVE, uuid.UUID(int=9)]),
    "heartbeats": lambda calls, c: calls.heartbeats(c),
    "delete_expired": lambda calls, c: calls.delete_expired(c, {HELD: calls.heartbeats(c)[HELD][0], LIVE: 1}),
    "sign_off": signed_off,
    "rescue": lambda calls, c: sorted(calls.rescue(c)),
    "rescue of some": lambda calls, c: calls.rescue(c, among=Among(only=[3, 4], set_aside=[3])),
    "to_rescue": lambda calls, c: sorted(calls.to_rescue(c, Among(set_aside=[4]))),
    "leases": lambda calls, c: sorted(calls.leases(c, LIVE, [2])),
    "cancel_requests": lambda calls, c: calls.cancel_requests(c, LIVE, [1, 2, 3]),
    "finish": lambda calls, c: calls.finish(c, ENDS),
    "finish_any": lambda calls, c: calls.finish_any(c, ENDS[:1]),
    "show_set_aside": lambda calls, c: [
        calls.show_set_aside(c, LIVE, reasons={"job 1": 'a "quoted" % ä\x00', "job 2": "b"}, gone=[]),
        calls.show_set_aside(c, LIVE, reasons={"job 3": "c"}, gone=["job 2"]),
    ],
    "show_stalled": lambda calls, c: [
        calls.show_stalled(c, LIVE, 5.0),
        calls.show_stalled(c, HELD, None),
        calls.show_stalled(c, uuid.UUID(int=9), 1.0),
    ],
    "promote": lambda calls, c: soon(calls.promote(c, queues=["default"], among=Among(set_aside=[9]))),
    "to_promote": lambda calls, c: calls.to_promote(c, Among()),
    "poll": lambda calls, c: soon(calls.poll(c, ["default"], ["mark", "it's"], Among())),
    "unknown_to": lambda calls, c: calls.unknown_to(c, ["default"], ["mark"]),
}
LEFT = (
    "SELECT id, state, attempt, process_id, current_run_id, finished_at IS NULL FROM sqla_jobs ORDER BY id",
    "SELECT job_id, attempt, outcome, error_type, error, traceback, result FROM sqla_runs ORDER BY job_id",
    "SELECT id, set_aside, stalled_since < clock_timestamp() - interval '5 seconds' FROM sqla_processes ORDER BY id",
)


@pytest.fixture
def dsn(database_url: str) -> str:
    return make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)


@pytest.fixture
def raw(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(dsn) as connection:
        yield connection


def read(connection: Connection) -> list[Any]:
    return [[tuple(row) for row in connection.exec_driver_sql(statement)] for statement in LEFT]


@pytest.mark.parametrize("name", ASKED)
def test_a_parent_gets_and_changes_what_a_worker_without_one_does(
    name: str, database: Engine, raw: psycopg.Connection[Any]
) -> None:
    with database.begin() as connection:
        connection.exec_driver_sql(ROWS.replace("%", "%%"))
    with database.connect() as connection:
        before = read(connection)
        by_sqlalchemy = ASKED[name](QUERIES, connection)
        after = read(connection)
        connection.rollback()
    by_psycopg = ASKED[name](CALLS, raw)
    assert by_psycopg == by_sqlalchemy
    assert [raw.execute(statement.encode()).fetchall() for statement in LEFT] == after
    assert by_psycopg or after != before, "a look or a change that finds nothing shows nothing"


@pytest.fixture
def parent(dsn: str) -> Iterator[Database]:
    info = DatabaseInfo()
    info.learn(Address(conninfo_to_dict(dsn), {}))
    parent = Database(info, patience=5.0)
    yield parent
    parent.close()


def asked(parent: Database, statement: str) -> Any:
    with parent.begin() as connection:
        ((answer,),) = connection.execute(statement.encode()).fetchall()
    return answer


def test_the_connection_is_kept_and_made_anew_once_it_is_lost(parent: Database, engine: Engine) -> None:
    pid = asked(parent, "SELECT pg_backend_pid()")
    assert asked(parent, "SELECT pg_backend_pid()") == pid
    with pytest.raises(psycopg.errors.DivisionByZero):
        asked(parent, "SELECT 1/0")
    assert asked(parent, "SELECT pg_backend_pid()") == pid
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
    with pytest.raises(psycopg.OperationalError):
        asked(parent, "SELECT 1")
    assert asked(parent, "SELECT pg_backend_pid()") != pid


def test_a_connection_to_a_server_that_takes_no_writes_is_given_up(parent: Database, database: Engine) -> None:
    pid = asked(parent, "SELECT pg_backend_pid()")
    asked(parent, "SELECT set_config('default_transaction_read_only', 'on', false)")
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        asked(parent, "DELETE FROM sqla_jobs RETURNING 1")
    assert asked(parent, "SELECT pg_backend_pid()") != pid


@pytest.mark.parametrize("default", ["read committed", "serializable"])
def test_statements_are_read_committed_and_a_transaction_can_be_rolled_back(
    default: str, parent: Database, database: Engine
) -> None:
    with database.begin() as connection:
        name = database.url.database
        connection.exec_driver_sql(f"ALTER DATABASE \"{name}\" SET default_transaction_isolation = '{default}'")
    assert asked(parent, "SELECT current_setting('transaction_isolation')") == "read committed"
    with parent.transaction() as inside:
        inside.execute(b"INSERT INTO sqla_queues (name) VALUES ('q')")
        raise psycopg.Rollback
    assert asked(parent, "SELECT count(*) FROM sqla_queues") == 0
    with parent.begin() as inside:
        inside.execute(b"INSERT INTO sqla_queues (name) VALUES ('q')")
    with database.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM sqla_queues").scalar_one() == 1
