"""The server and the network fail in each way we know of; afterwards everything is counted."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import capabilities
from sqlalchemy import Connection, Engine, NullPool, create_engine, event, func, make_url, select, text
from sqlalchemy.exc import DBAPIError, InternalError, OperationalError
from sqlalchemy.orm import Session, sessionmaker

from sqla_jobs.database.engines import fetched, own_engine
from sqla_jobs.postgres import LocalServer
from sqla_jobs.testing.databases import new_database
from tests import shop
from tests.conftest import StartWorker
from tests.counting import attempts_and_runs, effects, runs, states
from tests.helpers import wait_until
from tests.proxy import Proxy
from tests.shop import jobs

pytestmark = pytest.mark.slow
FAST: dict[str, Any] = {"heartbeat": 0.2, "lease": 1.5}
"""Of a worker; its patience is a second."""


@dataclass
class Place:
    """A database, seen directly by the test and through a proxy by the application and its workers."""

    server: LocalServer
    proxy: Proxy
    direct: Engine
    app: Engine
    url: str


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with LocalServer() as server:
        yield server


@pytest.fixture
def place(server: LocalServer) -> Iterator[Place]:
    shop.gate.clear()
    with new_database(server.url) as url, Proxy(("127.0.0.1", server.port)) as proxy:
        there = make_url(url).set(port=proxy.port)
        direct, app = create_engine(url, pool_pre_ping=True), create_engine(there)
        shop.Base.metadata.create_all(direct)
        jobs.bind(app)
        yield Place(server, proxy, direct, app, there.render_as_string(hide_password=False))
        shop.gate.set()
        proxy.cut()
        direct.dispose()
        app.dispose()


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "sqla_jobs")
    return caplog


def complaints(log: pytest.LogCaptureFixture) -> Counter[str]:
    """How often each part of a worker said that it fails."""
    return said_of_parts(log, "failed, and is tried again")


def recoveries(log: pytest.LogCaptureFixture) -> Counter[str]:
    """How often each part said that it works again."""
    return said_of_parts(log, "works again")


def said_of_parts(log: pytest.LogCaptureFixture, what: str) -> Counter[str]:
    said = (re.match(f"(.*) {what}", record.getMessage()) for record in log.records)
    return Counter(match[1] for match in said if match)


@contextmanager
def bounded_engine(app: Engine, patience: float) -> Generator[Engine]:
    engine = own_engine(app, patience=patience, most=2)
    try:
        yield engine
    finally:
        engine.dispose()


def enqueue(engine: Engine, count: int, seconds: float = 0.0) -> None:
    """`count` transactional jobs, and as many plain ones that use no connection."""
    with Session(engine) as session:
        shop.write.enqueue_many(session, ({"n": n, "seconds": seconds} for n in range(count)))
        shop.flaky.enqueue_many(session, ({"good_from": 1} for _ in range(count)))
        session.commit()


def all_succeeded(engine: Engine, count: int) -> None:
    """Waits for that; each of `enqueue` has had its effect once, and each attempt has left a run."""
    wait_until(lambda: states(engine) == {"succeeded": 2 * count}, timeout=40)
    assert effects(engine, "transactional") == dict.fromkeys(range(count), 1)
    attempts, rows = attempts_and_runs(engine)
    assert attempts == rows
    assert runs(engine, "lost") == 0


def is_listening(engine: Engine) -> bool:
    with engine.connect() as connection:
        return bool(connection.scalar(text("SELECT 1 FROM pg_stat_activity WHERE query LIKE 'LISTEN%'")))


def pid_of(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.scalar(select(func.pg_backend_pid())) or 0


# what the library's own connections promise


def test_a_server_that_answers_nothing_is_given_up_after_a_while(place: Place) -> None:
    with bounded_engine(place.app, 0.3) as engine, engine.connect() as connection:
        place.proxy.stall()
        before = time.monotonic()
        with pytest.raises(OperationalError, match="no answer"):
            connection.execute(text("SELECT 1"))
        assert time.monotonic() - before > 0.3
        with pytest.raises(OperationalError, match="no connection"):
            engine.connect()
        place.proxy.go_on()
        assert pid_of(engine)


def test_a_statement_that_is_given_up_ends_on_the_server_too(place: Place) -> None:
    if not capabilities.has_cancel_safe():
        pytest.skip("needs libpq 17")
    waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
    with bounded_engine(place.app, 0.3) as engine, place.direct.connect() as user:
        user.execute(text("LOCK TABLE effects"))
        with engine.connect() as connection, pytest.raises(OperationalError, match="no answer"):
            connection.execute(text("SELECT count(*) FROM effects"))
        wait_until(lambda: user.scalar(waiting) == 0)


def test_an_answer_that_arrives_slowly_is_waited_for(place: Place) -> None:
    slow = text("SELECT repeat('x', 20000), pg_sleep(0.1) FROM generate_series(1, 12)")
    with bounded_engine(place.app, 0.6) as engine, engine.connect() as connection:
        before = time.monotonic()
        assert len(connection.execute(slow).all()) == 12
        assert time.monotonic() - before > 0.6


def test_a_connection_that_comes_too_late_is_closed(place: Place) -> None:
    late, made = threading.Event(), list[psycopg.Connection[Any]]()

    def connect() -> psycopg.Connection[Any]:
        late.wait(20)
        made.append(psycopg.connect(place.url.replace("+psycopg", "")))
        return made[0]

    with pytest.raises(OperationalError, match="no connection"):
        own_engine(create_engine(place.url, creator=connect), patience=0.2, most=1).connect()
    late.set()
    wait_until(lambda: made and made[0].closed)


@pytest.mark.parametrize("is_lost", [True, False])
def test_after_one_error_below_sqlalchemy_all_connections_are_replaced(place: Place, is_lost: bool) -> None:
    """As after an error of SQLAlchemy: the server was restarted, or is a standby now."""
    with bounded_engine(place.app, 3) as engine:
        with engine.connect() as one, engine.connect() as other:
            pids = [connection.scalar(select(func.pg_backend_pid())) for connection in (one, other)]
            for connection in (one, other):
                connection.execute(text("SET default_transaction_read_only = on"))
        if is_lost:
            with place.direct.connect() as connection:
                connection.execute(select(func.pg_terminate_backend(func.unnest(pids), 5000)))
        with engine.connect() as connection, pytest.raises(OperationalError if is_lost else InternalError):
            fetched(connection, "DELETE FROM effects RETURNING 1", [])
        with engine.connect() as connection:
            assert fetched(connection, "DELETE FROM effects RETURNING 1", []) == []


@pytest.mark.parametrize("default", ["read committed", "serializable"])
def test_a_block_is_read_committed_and_one_transaction_where_it_has_to_be(default: str, place: Place) -> None:
    with place.direct.begin() as connection:
        name = connection.scalar(text("SELECT current_database()"))
        connection.execute(text(f"ALTER DATABASE \"{name}\" SET default_transaction_isolation = '{default}'"))
    with bounded_engine(place.app, 3) as engine:
        locking = engine.execution_options(isolation_level="READ COMMITTED")
        for queue, one, is_committed in (("single", engine, False), ("locked", locking, False), ("kept", engine, True)):
            with one.connect() as connection:
                assert connection.scalar(text("SHOW transaction_isolation")) == "read committed"
                connection.execute(text("INSERT INTO sqla_queues (name) VALUES (:name)"), {"name": queue})
                if is_committed:
                    connection.commit()
    with place.direct.connect() as connection:
        stored = set(connection.scalars(text("SELECT name FROM sqla_queues")))
    assert stored == ({"kept", "single"} if default == "read committed" else {"kept"})


def test_a_column_may_change_its_type_under_a_worker(place: Place) -> None:
    """As a migration may do: what was prepared before cannot be used any more."""
    with jobs.worker(clock=False), Session(place.direct) as session:
        for n in range(10):  # and is prepared by then
            shop.write.enqueue(session, n=n)
            session.commit()
            wait_until(lambda: states(place.direct).keys() == {"succeeded"})
        session.execute(text("ALTER TABLE sqla_jobs ALTER COLUMN task TYPE varchar(500)"))
        shop.write.enqueue(session, n=10)
        session.commit()
        wait_until(lambda: states(place.direct) == {"succeeded": 11})
    assert effects(place.direct, "transactional") == dict.fromkeys(range(11), 1)


# what is set for a task's transaction, and for nothing else


def test_the_server_looks_after_the_transaction_of_a_task_and_forgets_it_afterwards(place: Place) -> None:
    with Session(place.direct) as session:
        one = shop.settings.enqueue(session)
        session.commit()
        app = create_engine(place.url, pool_size=1, max_overflow=0)
        factory = sessionmaker(app)
        jobs.worker(bind=factory, concurrency=1, lease=24).drain()
        session.refresh(one)
        told = {"tcp_keepalives_idle": "12", "tcp_keepalives_interval": "4", "tcp_keepalives_count": "3"}
        assert one.runs[0].result == told
        with factory() as after:
            for name, value in told.items():
                assert after.scalar(select(func.current_setting(name))) != value
        app.dispose()


def test_a_process_frozen_before_its_commit_holds_the_job_no_longer_than_a_lease(
    place: Place, start_worker: StartWorker
) -> None:
    with Session(place.direct) as session:
        shop.freeze.enqueue(session, n=1)
        session.commit()
    frozen = start_worker(place.url)
    wait_until(lambda: _is_stopped(frozen.pid))
    start_worker(place.url)
    wait_until(lambda: states(place.direct) == {"succeeded": 1})
    os.killpg(frozen.pid, signal.SIGCONT)
    with place.direct.connect() as connection:
        live = select(func.count()).select_from(jobs.Process)
        wait_until(lambda: connection.scalar(live) == 2)  # it goes on, under a new id
        frozen.send_signal(signal.SIGTERM)
        assert frozen.wait(20) == 0
    assert effects(place.direct, "transactional") == {1: 1}
    assert (runs(place.direct, "lost"), runs(place.direct, "succeeded")) == (1, 1)


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


# faults under a worker


def test_a_restart_of_the_server_is_survived_and_said_once(place: Place, log: pytest.LogCaptureFixture) -> None:
    enqueue(place.direct, 40, 0.05)
    with jobs.worker(**FAST, concurrency=4, clock=False):
        wait_until(lambda: states(place.direct)["succeeded"] > 50)
        place.server.restart()
        all_succeeded(place.direct, 40)
        wait_until(lambda: is_listening(place.direct))
    assert max(complaints(log).values(), default=0) <= 1


KINDS: dict[str, tuple[str, str, Any, dict[str, int]]] = {
    "claiming": ("sqla_queues", "%", shop.flaky, {"good_from": 1}),
    "beating": ("sqla_processes", "WITH free AS%", shop.flaky, {"good_from": 1}),
    "storing": ("sqla_runs", "WITH mine AS%", shop.flaky, {"good_from": 1}),
    "committing": ("sqla_runs", "%WITH done AS%", shop.write, {"n": 1}),
    "writing": ("effects", "INSERT INTO effects%", shop.write, {"n": 1}),
}
"""The table whose lock makes each kind of connection wait, what it says then, and a job that brings it there."""
TERMINATE = text(
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
    "WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE :saying"
)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_connection_may_be_terminated(place: Place, log: pytest.LogCaptureFixture, kind: str) -> None:
    table, saying, task, arguments = KINDS[kind]

    def terminate() -> int:
        with place.direct.connect() as connection:
            return connection.scalar(TERMINATE, {"saying": saying}) or 0

    with jobs.worker(heartbeat=0.2, lease=9, clock=False), Session(place.direct) as session:
        wait_until(lambda: is_listening(place.direct))
        with place.direct.begin() as user:
            user.execute(text(f"LOCK TABLE {table} IN {'ACCESS ' * (kind == 'claiming')}EXCLUSIVE MODE"))
            one = task.enqueue(session, **arguments)
            session.commit()
            wait_until(terminate)
        wait_until(lambda: states(place.direct) == {"succeeded": 1})
        assert effects(place.direct, "transactional") == ({1: 1} if task is shop.write else {})
        session.refresh(one)
        charged = kind in ("committing", "writing")  # its own session broke, as far as anybody can tell
        assert [run.outcome for run in one.runs] == ["retried"] * charged + ["succeeded"]
    assert max(complaints(log).values(), default=0) <= 1


def test_a_failover_to_another_server_behind_the_same_address(log: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    home = Path(tempfile.mkdtemp(prefix="sqla_jobs_test_"))
    home.chmod(0o755)
    try:
        with LocalServer(data_directory=home / "old") as old, Proxy(("127.0.0.1", old.port)) as proxy:
            url = make_url(old.url).set(port=proxy.port)
            engine = create_engine(url, pool_pre_ping=True)
            jobs.bind(engine)
            shop.Base.metadata.create_all(engine)
            enqueue(engine, 40, 0.05)
            worker = jobs.worker(**FAST, concurrency=4, clock=False)
            worker.start()
            wait_until(lambda: states(engine)["succeeded"] > 50)
            old.stop()
            subprocess.run(["cp", "-a", home / "old", home / "new"], check=True)
            with LocalServer(data_directory=home / "new") as new:
                proxy.target = ("127.0.0.1", new.port)
                wait_until(lambda: _answers(engine))
                all_succeeded(engine, 40)
                direct = create_engine(new.url)
                wait_until(lambda: is_listening(direct))
                assert sum(states(direct).values()) == 80
                direct.dispose()
                worker.stop()
            engine.dispose()
    finally:
        shutil.rmtree(home)
    assert max(complaints(log).values(), default=0) <= 1


def _answers(engine: Engine) -> bool:
    try:
        return bool(pid_of(engine))
    except DBAPIError:
        return False


def test_connections_that_answer_nothing_are_made_anew_without_cost(
    place: Place, log: pytest.LogCaptureFixture
) -> None:
    """Half-open ones: the other end is gone and nobody says so, but the server can be reached."""
    with jobs.worker(heartbeat=0.2, lease=3, clock=False):
        wait_until(lambda: is_listening(place.direct))
        enqueue(place.direct, 5)
        all_succeeded(place.direct, 5)  # the application's pool has connections now
        with place.direct.connect() as connection:
            before = connection.scalar(text("SELECT pid FROM pg_stat_activity WHERE query LIKE 'LISTEN%'")) or 0
            place.proxy.strand()
            with Session(place.direct) as session:
                shop.write.enqueue_many(session, ({"n": n} for n in range(5, 10)))
                shop.flaky.enqueue_many(session, ({"good_from": 1} for _ in range(5)))
                session.commit()
            all_succeeded(place.direct, 10)
            connection.rollback()
            wait_until(lambda: _other_than(place.direct, before))
            with Session(place.direct) as session:
                assert set(session.scalars(select(jobs.Job.attempt))) == {1}
    assert max(complaints(log).values()) == 1


def _other_than(engine: Engine, before: int) -> bool:
    statement = text("SELECT 1 FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND pid <> :before")
    with engine.connect() as connection:
        return bool(connection.scalar(statement, {"before": before}))


def test_a_claim_whose_answer_is_lost_costs_nothing(
    place: Place, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sqla_jobs.worker.lookout.SOON", 60.0)  # a promotion would wait for the same table
    with jobs.worker(heartbeat=0.2, lease=9, clock=False) as worker:
        wait_until(lambda: is_listening(place.direct))
        parts = worker._parts
        assert parts is not None
        wait_until(lambda: parts._services.lookout.promote_at > time.monotonic() + 10)
        with parts.claimer._plain_loop.stepping:
            """The first promotion is over."""
        with place.direct.begin() as user:
            user.execute(text("LOCK TABLE sqla_queues IN ACCESS EXCLUSIVE MODE"))
            enqueue(place.direct, 3)
            wait_until(lambda: _is_waiting(place.direct, "%due AS MATERIALIZED%"))
            place.proxy.strand()
        wait_until(lambda: states(place.direct)["running"] == 6)  # on the server; nobody runs them
        all_succeeded(place.direct, 3)
        with Session(place.direct) as session:
            assert set(session.scalars(select(jobs.Job.attempt))) == {1}
    assert complaints(log)["claiming"] == 1


def _is_waiting(engine: Engine, saying: str) -> bool:
    statement = text("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE :saying")
    with engine.connect() as connection:
        return bool(connection.scalar(statement, {"saying": saying}))


@pytest.mark.parametrize("how", ["stopped", "silent"])
def test_after_an_outage_longer_than_the_lease_nobody_takes_the_jobs_of_the_living(
    place: Place, log: pytest.LogCaptureFixture, how: str
) -> None:
    with Session(place.direct) as session:
        shop.wait.enqueue_many(session, ({"n": n} for n in range(6)))
        shop.write.options(queue="mail").enqueue_many(session, ({"n": n, "seconds": 3.5} for n in range(2)))
        session.commit()
    workers = [jobs.worker({"default": 3, "mail": 1}, **FAST, clock=False) for _ in range(2)]
    with workers[0], workers[1]:
        wait_until(lambda: states(place.direct) == {"running": 8})
        if how == "stopped":
            place.server.stop()
            passed(2.0)
            place.server.start()
        else:
            place.proxy.stall()
            passed(2.0)
            place.proxy.go_on()
        wait_until(lambda: beating(place.direct) == 2)
        passed(2.5)  # by now each would have rescued what it takes to be lost
        assert states(place.direct)["running"] >= 6
        shop.gate.set()
        wait_until(lambda: states(place.direct) == {"succeeded": 8})
    assert effects(place.direct, "transactional") == {0: 1, 1: 1}
    assert runs(place.direct, "lost") == 0
    attempts, rows = attempts_and_runs(place.direct)
    assert attempts == rows
    assert "declared dead" not in log.text
    assert max(complaints(log).values()) <= 2 * len(workers), "the server's last answer may come between two outages"


def passed(seconds: float) -> None:
    """Time itself is the condition."""
    before = time.monotonic()
    wait_until(lambda: time.monotonic() - before > seconds)


def beating(engine: Engine) -> int:
    """How many processes have beaten within the last half second."""
    recent = func.clock_timestamp() - func.make_interval(0, 0, 0, 0, 0, 0, 0.5)
    with Session(engine) as session:
        return session.scalar(select(func.count()).where(jobs.Process.heartbeat_at > recent)) or 0


def put_off(log: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in log.records
        if "get no transaction" in record.getMessage() and record.levelno == logging.WARNING
    ]


def test_a_task_that_gets_no_connection_from_the_pool_comes_again_uncharged(
    place: Place, log: pytest.LogCaptureFixture
) -> None:
    small = create_engine(place.url, pool_size=1, max_overflow=0, pool_timeout=0.1)
    with Session(place.direct) as session:
        shop.write.enqueue_many(session, ({"n": n, "seconds": 0.3} for n in range(6)))
        session.commit()
        with jobs.worker(bind=small, concurrency=4, clock=False):
            wait_until(lambda: states(place.direct) == {"succeeded": 6})
        assert set(session.scalars(select(jobs.Job.attempt))) == {1}
    small.dispose()
    assert effects(place.direct, "transactional") == dict.fromkeys(range(6), 1)
    assert attempts_and_runs(place.direct) == (6, 6)
    (said,) = put_off(log)
    assert "QueuePool limit" in said


def test_too_many_connections_are_waited_out(place: Place, log: pytest.LogCaptureFixture) -> None:
    """First for the application's sessions alone, then, after a restart, for the worker's connections too."""
    admin = create_engine(place.direct.url, isolation_level="AUTOCOMMIT", pool_pre_ping=True)

    def execute(statement: str) -> None:
        with admin.connect() as connection:
            connection.execute(text(statement))

    role = f"clerk_{place.proxy.port}"
    execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
    execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
    execute(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role}")
    as_role = make_url(place.url).set(username=role, password="secret")
    app = create_engine(as_role, poolclass=NullPool)
    try:
        with jobs.worker(bind=app, **FAST, clock=False):
            wait_until(lambda: is_listening(place.direct))
            execute(f"ALTER ROLE {role} CONNECTION LIMIT 0")
            enqueue(place.direct, 3)
            wait_until(lambda: states(place.direct) == {"succeeded": 3, "scheduled": 3})
            place.server.restart()
            wait_until(lambda: len(complaints(log)) >= 3)
            execute(f"ALTER ROLE {role} CONNECTION LIMIT -1")
            all_succeeded(place.direct, 3)
            with Session(place.direct) as session:
                assert set(session.scalars(select(jobs.Job.attempt))) == {1}
            wait_until(lambda: complaints(log) == recoveries(log), message="an outage is not told once")
    finally:
        execute(f"DROP OWNED BY {role}")
        execute(f"DROP ROLE {role}")
        admin.dispose()
    (said,) = put_off(log)
    assert "too many connections for role" in said


def test_a_read_only_server_is_waited_out(place: Place, log: pytest.LogCaptureFixture) -> None:
    """As the old primary after a failover is: connections to it stay read-only for ever."""
    name = place.direct.url.database
    admin = create_engine(place.direct.url, isolation_level="AUTOCOMMIT")
    others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name AND pid <> pg_backend_pid()"
    with admin.connect() as connection:

        def alter(setting: str) -> None:
            connection.execute(text(f'ALTER DATABASE "{name}" SET {setting}'))

        alter("default_transaction_isolation = 'repeatable read'")
        place.app.dispose()
        enqueue(place.direct, 40, 0.05)
        with jobs.worker(**FAST, concurrency=4, clock=False):
            wait_until(lambda: states(place.direct)["succeeded"] > 45)
            alter("default_transaction_read_only = on")
            connection.execute(text(others), {"name": name})
            refused = "SELECT xact_rollback FROM pg_stat_database WHERE datname = current_database()"
            before = connection.scalar(text(refused)) or 0
            wait_until(lambda: {"claiming", "the heartbeat"} <= complaints(log).keys())
            wait_until(lambda: (connection.scalar(text(refused)) or 0) > before + 10)
            alter("default_transaction_read_only = off")
            all_succeeded(place.direct, 40)
    admin.dispose()
    assert max(complaints(log).values()) <= 4  # connections were lost, then the server took no writes; not at each try


def test_a_task_does_not_begin_in_a_session_that_cannot_write(place: Place, log: pytest.LogCaptureFixture) -> None:
    """The application's pool still leads to a server that is a standby now; it is made to connect anew."""
    seen = list[int]()
    factory = sessionmaker(place.app)

    @event.listens_for(factory, "after_begin")
    def first_only(session: Session, transaction: Any, connection: Connection) -> None:
        seen.append(connection.scalar(select(func.pg_backend_pid())) or 0)
        if seen[-1] == seen[0]:
            connection.execute(text("SET TRANSACTION READ ONLY"))

    with Session(place.direct) as session:
        one = shop.write.enqueue(session, n=1)
        session.commit()
        with jobs.worker(bind=factory, clock=False):
            wait_until(lambda: states(place.direct) == {"succeeded": 1})
        session.refresh(one)
        assert (one.attempt, [run.outcome for run in one.runs]) == (1, ["succeeded"])
    assert seen[0] == seen[1] != seen[2], "seen when the worker starts, then by the task, twice"
    (said,) = put_off(log)
    assert "read-only" in said
