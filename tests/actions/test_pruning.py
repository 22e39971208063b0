"""What is deleted because of its age, whatever the application's own keys and triggers say."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import (
    BigInteger,
    Engine,
    ForeignKey,
    ForeignKeyConstraint,
    delete,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_jobs import JobMixin, Jobs
from sqla_jobs.actions.pruning import SomeJobs
from sqla_jobs.cli.main import main
from sqla_jobs.queries.delete_jobs import Removal
from sqla_jobs.queries.graphs import Graphs
from sqla_jobs.rules.retention import Rule
from tests.helpers import wait_until

DAY = timedelta(days=1)


class Base(DeclarativeBase):
    pass


class Tenant(Base):
    __tablename__ = "tenants"
    id: Mapped[int] = mapped_column(primary_key=True)


class TenantJob(JobMixin):
    tenant_id: Mapped[int | None] = mapped_column("tenant", BigInteger, ForeignKey(Tenant.id, ondelete="CASCADE"))


jobs = Jobs(Base, job_class=TenantJob)
Job, Run, Audit = jobs.Job, jobs.Run, jobs.Audit


class Invoice(Base):
    """Refers to a job by a key of two columns."""

    __tablename__ = "invoices"
    __table_args__ = (ForeignKeyConstraint(["tenant", "job"], ["sqla_jobs.tenant", "sqla_jobs.id"]),)
    id: Mapped[int] = mapped_column(primary_key=True)
    job: Mapped[int | None] = mapped_column(BigInteger)
    tenant: Mapped[int | None] = mapped_column(BigInteger)


@jobs.task
def note() -> None: ...


@pytest.fixture
def tables(engine: Engine) -> Engine:
    # the unique constraint is the application's own, so it is made by a migration of its own
    with engine.begin() as connection:
        jobs_first = [table for table in Base.metadata.sorted_tables if table.name != "invoices"]
        Base.metadata.create_all(connection, tables=jobs_first)
        connection.execute(text("ALTER TABLE sqla_jobs ADD UNIQUE (id, tenant)"))
        Base.metadata.create_all(connection)
    jobs.bind(engine)
    return engine


@pytest.fixture
def session(tables: Engine) -> Iterator[Session]:
    with Session(tables) as session:
        yield session


def add(
    session: Session, count: int = 1, state: str = "succeeded", *, days: float = 100, tenant: int | None = None
) -> list[int]:
    ended = func.now() - days * DAY
    rows = [{"task": "note", "args": {}, "state": state, "finished_at": ended, "tenant_id": tenant}] * count
    ids = [session.scalars(insert(Job).values(row).returning(Job.id)).one() for row in rows]
    session.execute(insert(Run), [{"job_id": one, "attempt": 1, "outcome": state} for one in ids])
    session.execute(update(Run).where(Run.job_id.in_(ids)).values(finished_at=ended))
    session.commit()
    return ids


def left(session: Session, column: object = Job.id) -> list[int]:
    session.rollback()
    return sorted(session.scalars(select(column)))  # type: ignore[call-overload]


def by_command_line(*arguments: str) -> str:
    command = ["delete", "tests.actions.test_pruning:jobs", "--ended-before", "1d", "--yes", *arguments]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    return result.output


def refuse(engine: Engine, table: str, row_ids: list[int]) -> None:
    """A trigger of the application's that lets nobody delete these rows."""
    ids = ", ".join(map(str, row_ids))
    with engine.begin() as connection:
        connection.execute(
            text(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                f"IF OLD.id IN ({ids}) THEN RAISE EXCEPTION 'it must stay' USING ERRCODE = 'ZX001'; END IF; "
                "RETURN OLD; END $$"
            )
        )
        connection.execute(
            text(f"CREATE TRIGGER refuse BEFORE DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION refuse()")
        )


@pytest.fixture
def orphans(session: Session) -> tuple[list[int], list[int]]:
    """Runs whose job went with its tenant: ids of old ones, and of young ones with those that have a job."""
    for tenant in (1, 2):
        session.execute(insert(Tenant).values(id=tenant))
    gone = [*add(session, 3, "failed", days=40, tenant=1), *add(session, 2, days=2, tenant=1)]
    young = add(session, 2, days=0.1, tenant=1)
    add(session, 2, "failed", days=3, tenant=2)
    old = [*session.scalars(select(Run.id).where(Run.job_id.in_(gone)))]
    session.execute(delete(Tenant).where(Tenant.id == 1))
    session.commit()
    assert session.scalar(select(func.count()).where(Run.job_id.in_(young))) == 2
    return old, [one for one in left(session, Run.id) if one not in old]


class TestRunsWithoutAJob:
    @pytest.mark.slow
    def test_workers_delete_those_that_are_a_day_old(
        self, tables: Engine, session: Session, orphans: tuple[list[int], list[int]]
    ) -> None:
        with jobs.worker(bind=tables, clock=False):
            wait_until(lambda: left(session, Run.id) == orphans[1])

    @pytest.mark.slow
    def test_all_are_found_from_wherever_the_search_begins(
        self, tables: Engine, session: Session, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sqla_jobs.actions.pruning.LOOKED_AT", 7)
        monkeypatch.setattr("sqla_jobs.worker.pruner._EVERY", 0.01)
        kept = add(session, 100, "failed", days=3)
        session.execute(text("UPDATE sqla_runs SET job_id = job_id + 1000000 WHERE id IN (1, 2, 50, 51, 99, 100)"))
        session.commit()
        with jobs.worker(bind=tables, clock=False):
            wait_until(lambda: len(left(session, Run.id)) == 94)
        assert left(session) == kept


class TestAKeyOfSeveralColumns:
    @pytest.fixture
    def ids(self, session: Session) -> list[int]:
        session.execute(insert(Tenant).values(id=1))
        session.commit()
        ids = add(session, 5, tenant=1)
        session.add(Invoice(job=ids[2], tenant=1))
        session.add(Invoice(job=ids[3], tenant=None))  # NULL: it refers to nothing
        session.commit()
        return ids

    def test_workers_leave_the_job_and_delete_the_others(
        self, tables: Engine, session: Session, ids: list[int], caplog: pytest.LogCaptureFixture
    ) -> None:
        with jobs.worker(bind=tables, clock=False):
            wait_until(lambda: left(session) == [ids[2]])
        assert "refuses" not in caplog.text

    def test_so_do_prune_and_the_command_line(self, session: Session, ids: list[int]) -> None:
        assert jobs.delete(session, where=jobs.select(ended_before=timedelta(seconds=0))).changed == 4
        session.rollback()
        said = by_command_line()
        assert "delete: 4 jobs" in said
        assert f"1 left alone, first: {ids[2]}" in said
        assert left(session) == [ids[2]]


def test_a_key_that_keeps_many_jobs_is_told_of_with_a_remedy_that_destroys_nothing(
    tables: Engine, session: Session
) -> None:
    session.add(Tenant(id=1))
    session.flush()
    of_many = {"many": 1_200}
    session.execute(
        text(
            "INSERT INTO sqla_jobs (task, args, state, finished_at, tenant) SELECT 'note', '{}', "
            "'succeeded', now() - make_interval(days => n % 12), 1 FROM generate_series(1, :many * 2) AS n"
        ),
        of_many,
    )
    refer = "INSERT INTO invoices (job, tenant) SELECT id, 1 FROM sqla_jobs WHERE id % :part = 0"
    session.execute(text(refer), {"part": 2})
    session.commit()
    assert kept_jobs() == []
    session.execute(text(refer), {"part": 1})
    session.commit()
    (told,) = kept_jobs()
    assert told["found"] == "rows of public.invoices (tenant, job) keep 1,000 jobs from being pruned"


def kept_jobs() -> list[dict[str, str]]:
    done = CliRunner().invoke(main, ["doctor", "--json", "--app", "tests.actions.test_pruning:jobs"])
    return [one for one in json.loads(done.stdout) if "from being pruned" in one["found"]]


class TestATriggerThatRefuses:
    @pytest.mark.slow
    def test_workers_leave_the_job_delete_the_others_and_say_so_once(
        self, tables: Engine, session: Session, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sqla_jobs.worker.pruner._EVERY", 0.01)
        monkeypatch.setattr("sqla_jobs.worker.pruner._TRY_AGAIN", 0.0)
        ids = add(session, 20)
        refuse(tables, "sqla_jobs", ids[3:5])
        with jobs.worker(bind=tables, clock=False):
            wait_until(lambda: left(session) == ids[3:5])
            later = add(session, 5)
            wait_until(lambda: not set(later) & set(left(session)))
        told = [record.getMessage() for record in caplog.records if "refuses" in record.getMessage()]
        assert len(told) == 2
        for one, line in zip(ids[3:5], sorted(told), strict=True):
            assert f"job {one}" in line

    @pytest.mark.slow
    def test_more_than_a_batch_of_them_stops_nothing(
        self, tables: Engine, session: Session, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sqla_jobs.actions.pruning.BATCH", 5)
        monkeypatch.setattr("sqla_jobs.worker.pruner._EVERY", 0.01)
        monkeypatch.setattr("sqla_jobs.worker.pruner._REST", 0.0)
        monkeypatch.setattr("sqla_jobs.worker.pruner._MOST_REFUSED", 4)
        refused, others = add(session, 12), add(session, 12, days=99)
        refuse(tables, "sqla_jobs", refused)
        with jobs.worker(bind=tables, clock=False):
            wait_until(lambda: left(session) == refused)
        assert others

    @pytest.mark.parametrize("how", ["prune", "command line", "delete"])
    def test_so_do_the_others_who_delete(
        self, tables: Engine, session: Session, how: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        ids = add(session, 20)
        refuse(tables, "sqla_jobs", [ids[7]])
        with caplog.at_level(logging.WARNING):
            if how == "prune":
                assert jobs.delete(session, where=jobs.select(ended_before=timedelta(seconds=0))).changed == 19
                session.commit()
            elif how == "command line":
                assert "delete: 19 jobs" in by_command_line()
            else:
                arguments = ["delete", "tests.actions.test_pruning:jobs", "--all", "--yes"]
                assert f"1 left alone, first: {ids[7]}" in CliRunner().invoke(main, arguments).output
        assert left(session) == [ids[7]]
        assert caplog.text.count("it must stay") == 1


class TestTheAudit:
    @pytest.fixture
    def lines(self, session: Session) -> list[int]:
        for days in (400, 366, 364, 10, 0):
            session.execute(insert(Audit).values(actor="ada", action="retry", at=func.now() - days * DAY))
        session.commit()
        return left(session, Audit.id)

    def test_or_as_long_as_is_said(self, tables: Engine, session: Session, lines: list[int]) -> None:
        ended = add(session)
        with jobs.worker(bind=tables, retention={"audit": None}, clock=False):
            wait_until(lambda: left(session) == [])
        assert left(session, Audit.id) == lines
        with jobs.worker(bind=tables, retention={"audit": 9 * DAY}, clock=False):
            wait_until(lambda: left(session, Audit.id) == lines[4:])
        assert ended


@jobs.task(retention=DAY)
def chatter() -> None: ...


@jobs.task(retention={"succeeded": None, "failed": 60 * DAY}, aliases=["bookkeeping"])
def ledger() -> None: ...


class TestOfATask:
    """A task's own retention stands in place of the worker's, longer or shorter, by the state of the end."""

    def ended(self, session: Session, task: str, **days: float) -> dict[str, int]:
        added = {state: add(session, state=state, days=number)[0] for state, number in days.items()}
        session.execute(update(Job).where(Job.id.in_(added.values())).values(task=task))
        session.commit()
        return added

    def test_workers_obey_it(self, tables: Engine, session: Session) -> None:
        self.ended(session, "note", succeeded=8, failed=31)
        self.ended(session, "chatter", succeeded=2, failed=2, cancelled=2)
        self.ended(session, "ledger", failed=61, cancelled=8)
        kept = [
            *self.ended(session, "note", succeeded=6, failed=29).values(),
            *self.ended(session, "chatter", succeeded=0.9, failed=0.9).values(),
            *self.ended(session, "ledger", succeeded=4000, failed=59, cancelled=6).values(),
            *self.ended(session, "bookkeeping", succeeded=4000).values(),
        ]
        with jobs.worker(bind=tables, clock=False):
            wait_until(lambda: left(session) == sorted(kept))
        assert left(session, Run.job_id) == sorted(kept)

    def test_a_look_continues_where_the_last_one_ended(self, tables: Engine, session: Session) -> None:
        session.execute(
            text(
                "INSERT INTO sqla_jobs (task, args, state, finished_at) SELECT 'note', '{}', 'succeeded', "
                "now() - interval '6 days' + n * interval '1 second' FROM generate_series(1, 50000) AS n"
            )
        )
        session.commit()
        session.execute(text("ANALYZE sqla_jobs"))
        late = self.ended(session, "chatter", succeeded=2)["succeeded"]
        removal = Removal(jobs._models)
        graphs = Graphs(jobs._models, [])
        old = SomeJobs(
            removal, graphs, "succeeded", 86400, [], removal.is_under(Rule("succeeded", 86400, only=("chatter",)))
        )
        cursors: list[Any] = [None]
        while (batch := old.find(session, cursors[-1])).beyond is not None:
            cursors.append(batch.beyond(0))
        assert (batch.ids, len(cursors)) == ([late], 6)
        session.connection().invalidate()  # a new one has read nothing yet
        session.rollback()
        assert old.find(session, cursors[-1]).ids == [late]
        read = session.execute(
            text("SELECT seq_tup_read, idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'sqla_jobs'")
        ).one()
        assert (read[0], read[1] < 100) == (0, True)
