"""Roles with no more rights than they need: what they have to do works, and nothing else does."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from click.testing import CliRunner
from psycopg.errors import InsufficientPrivilege
from sqlalchemy import BigInteger, Engine, ForeignKey, create_engine, func, insert, select, text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from tenacity import Retrying, wait_fixed

from sqla_jobs import ConfigurationError, JobMixin, Jobs, RunContext, Snooze, Unique
from sqla_jobs.binds import Binds
from sqla_jobs.cli.main import main
from sqla_jobs.dashboard import Role
from tests import dashboard_shop
from tests.dashboard.test_dashboard import PATHS
from tests.dashboard.visitor import Visitor
from tests.helpers import wait_until


class Base(DeclarativeBase):
    pass


class MyJob(JobMixin):
    note: Mapped[str | None]


jobs = Jobs(Base, job_class=MyJob, schema="Odd schema", prefix="q_")
Job, Run = jobs.Job, jobs.Run


class Receipt(Base):
    """A table of the application's: the worker may write it, and forbids the deletion of its job."""

    __tablename__ = "receipts"
    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int | None] = mapped_column(BigInteger, ForeignKey(MyJob.id))


@jobs.task
def plain(n: int = 0) -> int:
    return n


@jobs.task
def transactional(session: Session, run: RunContext) -> None:
    session.add(Receipt(job_id=None))
    session.flush()
    run.progress(0.5, "half")
    plain.options(batch=jobs.batch(session)).enqueue(session, n=7)


@jobs.task(max_attempts=2, retry=Retrying(wait=wait_fixed(0)))
def failing() -> None:
    raise ValueError("no")


@jobs.task
def snoozing_once(session: Session, run: RunContext) -> None:
    if not session.scalar(select(Run.id).where(Run.job_id == run.job_id)):
        raise Snooze(0)


forgetful = Jobs(Base, prefix="q_")


@forgetful.task(retention={"succeeded": "erase"})
def forget(name: str) -> str:
    return name


plain.schedule("@every 1", name="ticks", args={"n": 1})


def now(session: Session, question: Any) -> Any:
    """What the database answers at this moment."""
    session.rollback()
    return session.scalar(question)


MakeRole = Callable[[str, str], Engine]


@pytest.fixture
def tables(engine: Engine) -> Engine:
    with engine.begin() as connection:
        connection.execute(text('CREATE SCHEMA "Odd schema"'))
    for base in (Base, dashboard_shop.Base):
        base.metadata.create_all(engine)
    return engine


@pytest.fixture
def session(tables: Engine) -> Iterator[Session]:
    with Session(tables) as session:
        yield session


@pytest.fixture
def make_role(engine: Engine) -> Iterator[MakeRole]:
    """A login with what `sqla-jobs grants` gives to its kind, and an engine that connects as it."""
    made: list[tuple[str, Engine]] = []
    quote = engine.dialect.identifier_preparer.quote_identifier

    def make(kind: str, application: str = "tests.actions.test_grants:jobs") -> Engine:
        role, password = f'odd "{kind}" {secrets.token_hex(4)}', secrets.token_hex(8)
        result = CliRunner().invoke(main, ["grants", application, f"--{kind}", role])
        assert result.exit_code == 0, result.output
        with engine.begin() as connection:
            connection.exec_driver_sql(f"CREATE ROLE {quote(role)} LOGIN PASSWORD '{password}'")
            connection.exec_driver_sql(result.output)
        limited = create_engine(engine.url.set(username=role, password=password))
        made.append((role, limited))
        return limited

    yield make
    for role, limited in made:
        limited.dispose()
        with engine.begin() as connection:
            connection.exec_driver_sql(f"DROP OWNED BY {quote(role)}; DROP ROLE {quote(role)}")


def denied(engine: Engine, statement: str) -> bool:
    with engine.connect() as connection:
        try:
            connection.exec_driver_sql(statement)
        except ProgrammingError as error:
            return isinstance(error.orig, InsufficientPrivilege)
    return False


def allowed(engine: Engine, table: Any, right: str) -> set[str]:
    """The columns for which this role has the right."""
    name = engine.dialect.identifier_preparer.format_table(table)
    with engine.connect() as connection:
        return {
            column.name
            for column in table.columns
            if connection.scalar(select(func.has_column_privilege(name, column.name, right)))
        }


TABLES = jobs._models.tables
AFTER = {"waits_for", "waits_at", "if_failed", "batch_id", "finished_at"}
ENQUEUED = {
    *("task", "queue", "priority", "args", "state", "run_at", "max_attempts", "max_lost", "note"),
    *("unique_key", "unique_period", "gates", "ordered_by", "headers", "on_failure"),
    *("timeout", "retention", "expires_at"),
}


class TestAnEnqueuer:
    @pytest.fixture
    def enqueuer(self, tables: Engine, make_role: MakeRole) -> Engine:
        return make_role("enqueuer", "tests.actions.test_grants:jobs")

    @pytest.mark.slow
    def test_enqueues_in_every_way(self, enqueuer: Engine, session: Session) -> None:
        with Session(enqueuer) as mine:
            plain.enqueue(mine, n=1)
            plain.options(
                delay=60, priority=-3, queue="mail", max_attempts=2, max_lost=3, columns={"note": "x"}
            ).enqueue(mine, n=2)
            plain.options(columns={"note": "y"}).enqueue_many(mine, [{"n": 3}, {"n": 4}])
            first = plain.options(unique_key="waits").enqueue(mine, n=5)
            mine.commit()
            assert plain.options(unique_key="waits").enqueue(mine, n=6).id == first.id
            assert (first.state, first.args, first.created_at is not None) == ("queued", {"n": 5}, True)
            mine.rollback()
            session.execute(
                insert(Job).values(
                    task="plain", args={}, state="running", unique_key="runs", process_id=UUID(int=1), current_run_id=1
                )
            )
            session.commit()
            assert plain.options(unique_key="runs").enqueue(mine, n=7).state == "running"
            mine.commit()
        assert session.scalar(select(func.count()).select_from(Job)) == 6

    @pytest.mark.slow
    def test_changes_waiting_jobs_once_it_may(self, enqueuer: Engine, tables: Engine) -> None:
        """With what stands in the comments."""
        role = enqueuer.url.username or ""
        replacing = plain.options(unique_key="k", unique=Unique(on_conflict="replace", max_delay=60))
        with Session(enqueuer) as mine:
            with pytest.raises(ProgrammingError, match="permission denied"):
                replacing.enqueue(mine, n=1)
            mine.rollback()
            told = CliRunner().invoke(main, ["grants", "tests.actions.test_grants:jobs", "--enqueuer", role]).output
            rights = [line.removeprefix("--   ") for line in told.splitlines() if line.startswith("--   ")]
            with tables.begin() as connection:
                for right in rights:
                    to = tables.dialect.identifier_preparer.quote_identifier(role)
                    connection.exec_driver_sql(f"GRANT {right} TO {to}")
            policy = Unique(on_conflict="replace", max_delay=60)
            job = replacing.enqueue(mine, n=2)
            mine.commit()
            changing = plain.options(unique_key="k", unique=policy, priority=3, columns={"note": "x"})
            assert changing.enqueue(mine, n=3) is job
            assert (job.args, job.priority) == ({"n": 3}, 3)
            every = plain.options(unique=Unique(per=3600))
            assert every.enqueue_many(mine, [{"n": 1}, {"n": 1}]).skipped == 1
            outer, inner = jobs.batch(mine), jobs.batch(mine)
            mine.commit()
            assert plain.options(batch=outer, after=inner).enqueue(mine, n=4).state == "blocked"

    def test_is_told_who_may_use_a_command(self, enqueuer: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(jobs, "_binds", Binds())
        address = enqueuer.url.render_as_string(hide_password=False)
        words = ["enqueue", "tests.actions.test_grants:jobs", "plain", "{}", "--database-url", address]
        done = CliRunner().invoke(main, words)
        jobs._binding().engine.dispose()
        assert (done.exit_code, "sqla-jobs grants" in done.output, "q_audit" in done.output) == (1, True, True)

    def test_may_insert_from_any_language_but_name_no_column_that_is_not_its_own(self, enqueuer: Engine) -> None:
        with enqueuer.begin() as connection:
            connection.exec_driver_sql("""INSERT INTO "Odd schema".q_jobs (task, args) VALUES ('plain', '{}')""")
        assert allowed(enqueuer, TABLES["jobs"], "INSERT") == ENQUEUED
        assert denied(enqueuer, """INSERT INTO "Odd schema".q_jobs (task, args, id) VALUES ('plain', '{}', 77)""")
        for sequence in ("q_runs_id_seq", "q_jobs_position_seq"):
            assert denied(enqueuer, f"""SELECT nextval('"Odd schema".{sequence}')""")
            assert denied(enqueuer, f"""SELECT setval('"Odd schema".{sequence}', 1)""")

    def test_may_do_nothing_else(self, enqueuer: Engine) -> None:
        assert allowed(enqueuer, TABLES["jobs"], "UPDATE") == {"progress_message"}
        assert denied(enqueuer, 'DELETE FROM "Odd schema".q_jobs')
        assert denied(enqueuer, 'TRUNCATE "Odd schema".q_jobs')
        for noun, table in TABLES.items():
            if noun != "jobs":
                for right in ("SELECT", "INSERT", "UPDATE"):
                    assert allowed(enqueuer, table, right) == set(), (noun, right)


class TestAWorker:
    def test_erases_jobs_on_success_once_it_may(self, tables: Engine, session: Session, make_role: MakeRole) -> None:
        """With what stands in the comments. Until then it does not start: it could store no success."""
        worker = make_role("worker", "tests.actions.test_grants:forgetful")
        role = worker.url.username or ""
        reason = r"this role may not change args of q_jobs: grant what `sqla-jobs grants --worker"
        with pytest.raises(ConfigurationError, match=reason):
            forgetful.worker(bind=worker).drain()
        told = CliRunner().invoke(main, ["grants", "tests.actions.test_grants:forgetful", "--worker", role]).output
        comments = told.partition('"erase"')[2].splitlines()
        rights = [line.removeprefix("--   ") for line in comments if line.startswith("--   ")]
        assert len(rights) == 3
        with tables.begin() as connection:
            for right in rights:
                to = tables.dialect.identifier_preparer.quote_identifier(role)
                connection.exec_driver_sql(f"GRANT {right} TO {to}")
        job = forget.enqueue(session, name="Zoe")
        session.commit()
        forgetful.worker(bind=worker).drain()
        assert (job.state, job.args) == ("succeeded", {"(erased)": True})

    @pytest.mark.slow
    def test_works_fires_and_prunes(
        self, tables: Engine, session: Session, make_role: MakeRole, caplog: pytest.LogCaptureFixture
    ) -> None:
        worker, enqueuer = (
            make_role("worker", "tests.actions.test_grants:jobs"),
            make_role("enqueuer", "tests.actions.test_grants:jobs"),
        )
        role = tables.dialect.identifier_preparer.quote_identifier(worker.url.username or "")
        with tables.begin() as connection:  # the application's own table
            connection.exec_driver_sql(f"GRANT INSERT ON receipts TO {role}; GRANT SELECT (id) ON receipts TO {role}")
            connection.exec_driver_sql(f"GRANT USAGE ON SEQUENCE receipts_id_seq TO {role}")
        old = {"task": "plain", "args": {}, "state": "succeeded", "finished_at": func.now() - timedelta(days=90)}
        pruned, kept = [session.scalars(insert(Job).values(old).returning(Job.id)).one() for _ in range(2)]
        session.add(Receipt(job_id=kept))  # of a table that the worker may not read
        session.execute(
            insert(Run).values(job_id=99999, attempt=1, outcome="failed", finished_at=func.now() - timedelta(days=3))
        )
        session.execute(insert(jobs.Audit).values(at=func.now() - timedelta(days=900)))
        dead = {"id": UUID(int=5), "lease": 1.0}
        session.execute(insert(jobs.Process).values(dead))
        lease = {
            "process_id": UUID(int=5),
            "current_run_id": 10**9,
            "state": "running",
            "attempt": 1,
            "started_at": func.now(),
        }
        lost = session.scalars(insert(Job).values(task="plain", args={}, **lease).returning(Job.id)).one()
        session.commit()
        with (
            jobs.worker(bind=worker, heartbeat=0.1, lease=1.0, clock=False),
            jobs.clock(bind=worker, heartbeat=0.1, lease=1.0),
        ):
            with Session(enqueuer) as mine:
                for task in (plain, transactional, failing, snoozing_once):
                    task.enqueue(mine)
                plain.options(delay=0.5).enqueue(mine)
                mine.commit()
            session.rollback()

            def outcomes() -> set[str]:
                session.rollback()
                return {*map(str, session.scalars(select(Run.outcome)))}

            wait_until(lambda: outcomes() == {"succeeded", "retried", "failed", "snoozed", "lost"})
            wait_until(
                lambda: session.scalar(
                    select(func.count()).where(Job.scheduled_for.is_not(None), Job.state == "succeeded")
                )
            )
            ended = select(func.count()).where(Job.id > lost, Job.schedule_id.is_(None), Job.state == "succeeded")
            wait_until(
                lambda: session.scalar(ended) == 5, message="the four that succeed, and the one that another enqueued"
            )
            wait_until(lambda: now(session, select(Job.state).where(Job.id == lost)) == "succeeded")
            wait_until(lambda: session.get(Job, pruned, populate_existing=True) is None)
            wait_until(lambda: not session.scalar(select(Run.id).where(Run.job_id == 99999)))
            wait_until(lambda: not session.scalar(select(jobs.Audit.id)))
        session.rollback()
        assert session.get(Job, kept) is not None
        assert session.scalars(select(jobs.Process.id)).all() == []
        assert "permission denied" not in caplog.text

    def test_may_do_nothing_else(self, tables: Engine, make_role: MakeRole) -> None:
        worker = make_role("worker", "tests.actions.test_grants:jobs")
        assert allowed(worker, TABLES["jobs"], "UPDATE").isdisjoint({"id", "task", "args", "queue", "unique_key"})
        assert allowed(worker, TABLES["runs"], "UPDATE") == {"traceback", "untold_at"}
        assert allowed(worker, TABLES["jobs"], "INSERT") == ENQUEUED | AFTER | {"schedule_id", "scheduled_for"}
        for noun in ("queues", "paused_tasks", "audit"):
            assert allowed(worker, TABLES[noun], "INSERT") == allowed(worker, TABLES[noun], "UPDATE") == set()
        assert allowed(worker, TABLES["ticks"], "UPDATE") == set()
        assert denied(worker, 'DELETE FROM "Odd schema".q_schedules')


class TestAViewer:
    @pytest.fixture
    def viewer(self, tables: Engine, make_role: MakeRole) -> Iterator[Engine]:
        dashboard_shop.jobs.bind(tables)
        with Session(tables) as session:
            dashboard_shop.add.enqueue(session, a=1)
            dashboard_shop.fail.enqueue(session, message="no")
            session.add(dashboard_shop.jobs.Schedule(name="x", task="add", cron="@daily", args={"a": 1}))
            session.add(dashboard_shop.jobs.Audit(actor="ada", action="retry", subject="job 1"))
            session.commit()
        dashboard_shop.jobs.worker(bind=tables).drain()
        viewer = make_role("viewer", "tests.dashboard_shop:jobs")
        dashboard_shop.jobs.bind(viewer)
        yield viewer
        dashboard_shop.jobs.bind(tables)

    @pytest.mark.slow
    def test_sees_every_page(self, viewer: Engine) -> None:
        visitor = Visitor(dashboard_shop.create_app(lambda: Role.viewer))
        more = ["/?span=day", "/jobs?state=failed", "/jobs?task=add", "/jobs?error=no", "/jobs?arg=a%3D1", "/jobs/2"]
        for path in [*PATHS, *more]:
            visitor.get(path)

    @pytest.mark.slow
    def test_looks_by_the_command_line(self, viewer: Engine) -> None:
        commands = ("status", "list", "show 1", "show 2", "limit list", "doctor", "schedule list", "list --error no")
        for command in commands:
            result = CliRunner().invoke(main, [*command.split(), "--app", "tests.dashboard_shop:jobs"])
            assert result.exit_code == 0, result.output

    def test_may_only_read(self, viewer: Engine) -> None:
        for noun, table in dashboard_shop.jobs._models.tables.items():
            assert allowed(viewer, table, "SELECT") == {column.name for column in table.columns}
            for right in ("INSERT", "UPDATE", "REFERENCES"):
                assert allowed(viewer, table, right) == set(), (noun, right)
            assert denied(viewer, f"DELETE FROM {table.name}")
            assert denied(viewer, f"SELECT FROM {table.name} FOR KEY SHARE")
        assert denied(viewer, "SELECT nextval('sqla_runs_id_seq')")


def test_what_is_no_role_is_refused() -> None:
    for role in ("", "ä" * 32, "a\nDROP TABLE sqla_jobs; --", "public"):
        result = CliRunner().invoke(main, ["grants", "tests.shop:jobs", "--viewer", role])
        assert (result.exit_code, "GRANT" in result.output) == (1, False)
