"""What does not depend on the machine: how much is asked of the database for a job, and by which plans."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any, LiteralString

import psycopg
import pytest
from sqlalchemy import Connection, Engine, create_engine, select, text
from sqlalchemy.orm import Session

from sqla_jobs.database.driver import driver
from sqla_jobs.database.preparing import PLANNED_ANEW, PLANNED_ONCE
from sqla_jobs.queries import Queries, RunEnd, processes
from sqla_jobs.queries.statement import RenderedStatement, Statement
from sqla_jobs.rules.outcomes import Failure, Outcome
from sqla_jobs.worker.floors import SweepTimer
from tests import shop
from tests.counting import states
from tests.shop import jobs

QUERIES = Queries(jobs._models)
BATCH = 1000


@pytest.fixture
def connection(database: Engine) -> Iterator[Connection]:
    with database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        yield connection


def enqueue(engine: Engine, count: int) -> None:
    with Session(engine) as session:
        shop.flaky.enqueue_many(session, ({"good_from": 1} for _ in range(count)))
        session.commit()


@pytest.mark.slow
def test_a_drain_costs_few_statements_and_each_is_a_transaction_of_its_own(
    connection: Connection, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    execute = psycopg.Cursor.execute

    def counted(self: psycopg.Cursor[Any], query: Any, *args: Any, **options: Any) -> Any:
        sent.append(str(query))
        return execute(self, query, *args, **options)

    enqueue(engine, 5000)
    monkeypatch.setattr(psycopg.Cursor, "execute", counted)
    assert jobs.worker().drain() == 5000
    monkeypatch.undo()
    assert len(sent) <= 0.05 * 5000
    assert not [query for query in sent if query.upper().startswith(("BEGIN", "COMMIT"))]


class Explained:
    """Prepares and executes the statements of `Queries` in its place, and keeps their plans."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.plans: list[dict[str, Any]] = []
        self._patch = monkeypatch
        self._prepared: dict[str, str] = {}

    def __enter__(self) -> list[dict[str, Any]]:
        """From here on each statement is executed by EXPLAIN, and returns nothing."""

        def run(statement: Statement, connection: Connection, values: dict[str, Any]) -> Any:
            compiled = statement.sql().compile(connection)
            asked, given = str(compiled), compiled.construct_params(values)
            cursor = psycopg.ClientCursor(driver(connection))
            if asked not in self._prepared:
                self._prepared[asked] = f"explained_{len(self._prepared)}"
                numbered = asked % {name: f"${number}" for number, name in enumerate(given, 1)}
                cursor.execute(f"PREPARE {self._prepared[asked]} AS {numbered}".encode())
            arguments = ", ".join(f"%({name})s" for name in given)
            execute = f"EXPLAIN (ANALYZE, WAL, FORMAT JSON) EXECUTE {self._prepared[asked]} ({arguments})"
            ((told,),) = cursor.execute(execute.encode(), given).fetchall()
            self.plans.append(told[0]["Plan"])
            return connection.execute(select(text("1")).where(text("false")))

        def rows(statement: RenderedStatement, connection: Connection, values: dict[str, Any]) -> list[Any]:
            run(statement, connection, values)
            return []

        self._patch.setattr(Statement, "_run", run)
        self._patch.setattr(RenderedStatement, "_rows", rows)
        return self.plans

    def __exit__(self, *_: object) -> None:
        self._patch.undo()


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", []):
        yield from nodes(below)


def bytes_of_log(plan: dict[str, Any]) -> float:
    """Without images of whole pages, of 8 kB each, where the server writes some."""
    return float(plan["WAL Bytes"] - 8192 * plan["WAL FPI"])


@pytest.mark.slow
def test_a_job_costs_at_most_1300_bytes_of_log(
    connection: Connection, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    enqueue(engine, 3 * BATCH)
    me = processes.register(connection, jobs._models, kind="worker", queues={"default": 8}, lease=30.0)
    held = QUERIES.claim(connection, me, {"default": 2 * BATCH}, list(jobs.tasks))
    with Explained(monkeypatch) as plans:
        QUERIES.claim(connection, me, {"default": BATCH}, list(jobs.tasks))
        QUERIES.finish(connection, [RunEnd(job, Outcome.succeeded('{"a": 1}'), 0.001, 0.002) for job in held[:BATCH]])
    claimed, stored = plans[:2]
    assert states(engine) == {"running": 2 * BATCH, "succeeded": BATCH}
    assert bytes_of_log(claimed) / BATCH > 100
    assert bytes_of_log(claimed) / BATCH + bytes_of_log(stored) / BATCH <= 1300


@pytest.mark.parametrize(
    ("planning", "is_analyzed", "scheduled"),
    [
        pytest.param(PLANNED_ANEW, False, 0.9, id="anew"),
        pytest.param(PLANNED_ANEW, True, 0.0, id="anew, analyzed"),
        pytest.param(PLANNED_ONCE, False, 0.0, id="once"),
        pytest.param(PLANNED_ONCE, True, 0.9, id="once, analyzed"),
    ],
)
@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_plans_at_many_rows_look_up_only_what_they_need(
    connection: Connection,
    monkeypatch: pytest.MonkeyPatch,
    planning: LiteralString,
    is_analyzed: bool,
    scheduled: float,
) -> None:
    """Those of claims and promotions are kept, and were made while the tables were empty, but for behind a pooler."""
    name = jobs.Job.__tablename__
    connection.execute(text(f"ALTER TABLE {name} SET (autovacuum_enabled = off)"))
    driver(connection).execute(planning)
    me = processes.register(connection, jobs._models, kind="worker", queues={"default": 8}, lease=30.0)
    explained = Explained(monkeypatch)
    with explained:
        claim_and_promote(connection, me)
    connection.execute(
        text(
            f"INSERT INTO {name} (task, args, state, run_at) SELECT 'mark', '{{\"n\": 1}}', "
            "CASE WHEN n <= 300000 * :scheduled THEN 'scheduled' WHEN n % 2 = 0 THEN 'queued' ELSE 'succeeded' END, "
            "now() + (n - 500) * interval '1 minute' FROM generate_series(1, 300000) n"
        ),
        {"scheduled": scheduled},
    )
    if is_analyzed:
        connection.execute(text("ANALYZE"))
    held = QUERIES.claim(connection, me, {"default": 2 * BATCH}, list(jobs.tasks))
    why = Failure("ValueError", "no")
    explained.plans.clear()
    with explained as plans:
        claim_and_promote(connection, me)
        if planning == PLANNED_ANEW:
            QUERIES.finish(connection, [RunEnd(job, Outcome.succeeded(), 0.001, 0.002) for job in held[:BATCH]])
            QUERIES.finish(
                connection, [RunEnd(job, Outcome.failed(why), 0.001, 0.002) for job in held[BATCH : BATCH + 500]]
            )
            QUERIES.finish(
                connection, [RunEnd(job, Outcome.retried(1.0, why), 0.001, 0.002) for job in held[BATCH + 500 :]]
            )
            QUERIES.cancel_requests(connection, me, [job.job_id for job in held])
    connection.execute(text(f"ALTER TABLE {name} RESET (autovacuum_enabled)"))
    assert len(plans) >= (6 if planning == PLANNED_ANEW else 2)
    for plan in plans:
        found = json.dumps(plan, indent=1)
        reading = [node for node in nodes(plan) if node.get("Relation Name") == name]
        assert not [node for node in reading if node["Node Type"] == "Seq Scan"], found
        read = sum(node["Actual Rows"] * node["Actual Loops"] for node in reading)
        assert read <= 8 * BATCH, found
        assert sum(node.get("Rows Removed by Filter", 0) for node in reading) <= 2 * BATCH, found


def claim_and_promote(connection: Connection, me: uuid.UUID) -> None:
    QUERIES.claim(connection, me, {"default": BATCH}, list(jobs.tasks))
    with pytest.raises(ValueError, match="unpack"):  # EXPLAIN gives it no row
        QUERIES.promote(connection)


def test_one_sweep_that_the_machine_held_up_does_not_put_off_the_next() -> None:
    """What came late is to start within two seconds, and a sweep that took 1 s of 2 ms would be followed by 20 s."""
    sweeps = SweepTimer()
    for began, took in ((0.0, 0.002), (1.0, 1.0)):
        sweeps.swept(began, began + took)
    assert sweeps.at == 3.0
    sweeps.swept(3.0, 4.0)
    assert sweeps.at == 24.0, "the second in succession says what they cost"


def test_the_end_of_a_transactional_task_is_prepared_with_a_plan_that_stays_good(
    connection: Connection, engine: Engine
) -> None:
    """A plan that is kept, and was made for a table of one page, would read all of what is there later."""
    connection.execute(text("VACUUM ANALYZE"))
    app = create_engine(engine.url, pool_size=1, max_overflow=0)
    drain_transactional(app, engine)
    with app.connect() as same:
        prepared = same.execute(text("SELECT name, generic_plans FROM pg_prepared_statements WHERE from_sql")).all()
        assert [generic > 0 for _, generic in prepared] == [True]
        values = "0.1, 1, 1, NULL, 0.1, NULL"
        plan = same.scalars(text(f"EXPLAIN EXECUTE {prepared[0][0]} ({values})")).all()
    app.dispose()
    reading = [line for line in plan if jobs.Job.__tablename__ in line and "Scan" in line]
    assert reading
    assert all("Index Scan" in line and "_pkey" in line for line in reading)


@pytest.mark.slow
def test_nothing_is_prepared_where_the_application_wants_nothing_prepared(
    connection: Connection, engine: Engine
) -> None:
    app = create_engine(engine.url, pool_size=1, max_overflow=0, connect_args={"prepare_threshold": None})
    drain_transactional(app, engine)
    with app.connect() as same:
        assert same.scalar(text("SELECT count(*) FROM pg_prepared_statements")) == 0
    app.dispose()


def drain_transactional(app: Engine, engine: Engine) -> None:
    with Session(engine) as session:
        shop.write.enqueue_many(session, ({"n": n} for n in range(20)))
        session.commit()
    assert jobs.worker(bind=app, concurrency=1).drain() == 20
    assert states(engine) == {"succeeded": 20}
