"""What is deleted because of its age, whatever the application's own keys and triggers say."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import (
    BigInteger,
    Engine,
    ForeignKey,
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
