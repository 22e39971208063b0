"""Many jobs at once: cancelled, retried, deleted and pruned, past what others hold."""

from __future__ import annotations

from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, ForeignKey, func, insert, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_jobs import JobMixin, Jobs
from sqla_jobs.actions import audit
from sqla_jobs.actions.audit import Changing
from sqla_jobs.actions.bulk_change import Change, Progress
from sqla_jobs.actions.jobs import Cancel, Delete, Retry
from sqla_jobs.actions.selection import Selection
from tests.helpers import states


class Base(DeclarativeBase):
    pass


class MyJob(JobMixin):
    pass


jobs = Jobs(Base, job_class=MyJob)


class Receipt(Base):
    """Forbids the deletion of its job."""

    __tablename__ = "receipts"
    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int | None] = mapped_column(ForeignKey(MyJob.id))
    soft_id: Mapped[int | None] = mapped_column(ForeignKey(MyJob.id, ondelete="SET NULL"))


@jobs.task
def note(number: int) -> None:
    if number < 0:
        raise ValueError("100% below_zero")


LEASE = {"current_run_id": 1, "process_id": "00000000-0000-0000-0000-000000000001", "attempt": 1}


@pytest.fixture
def application() -> Jobs[Any]:
    return jobs


def add(session: Session, state: str, **values: Any) -> int:
    lease = LEASE if state == "running" else {}
    ended = {"finished_at": func.now()} if state in ("succeeded", "failed", "cancelled") else {}
    row = {"task": "note", "args": {"number": 1}, "state": state, **lease, **ended, **values}
    job_id = session.scalars(insert(MyJob).values(row).returning(MyJob.id)).one()
    session.execute(insert(jobs.Run).values(job_id=job_id, attempt=1, outcome="succeeded"))
    session.commit()
    return job_id


def changing() -> AbstractContextManager[Changing]:
    return audit.changing(jobs._binding(), jobs._models, jobs.tasks, "ada")


def all_of(change: Change, selection: Selection | None = None) -> tuple[int, int]:
    """How many jobs were looked at, and how many of them changed."""
    done = [Progress(), *change.in_batches(changing, selection or Selection())][-1]
    return done.seen, done.changed


STATES = ["blocked", "scheduled", "queued", "running", "succeeded", "failed", "cancelled"]


@pytest.mark.parametrize(
    ("change", "changed", "state"),
    [
        (Cancel(), {"blocked", "scheduled", "queued", "running"}, "cancelled"),
        (Retry(), {"blocked", "scheduled", "succeeded", "failed", "cancelled"}, "queued"),
        (Delete(), {"blocked", "scheduled", "queued", "succeeded", "failed", "cancelled"}, None),
    ],
    ids=["cancel", "retry", "delete"],
)
def test_each_change_touches_the_states_it_applies_to(
    session: Session, change: Change, changed: set[str], state: str | None
) -> None:
    ids = {name: add(session, name) for name in STATES}
    assert change.count(session, jobs._models, Selection()) == dict.fromkeys(change.states, 1)
    assert all_of(change) == (len(changed), len(changed))
    found = states(session)
    for name, job_id in ids.items():
        expected = state if name in changed else name
        if (change, name) == (Cancel(), "running"):  # it is asked to end
            expected = "running"
            assert session.get_one(MyJob, job_id).cancel_requested_at is not None
        assert found.get(job_id) == expected
    orphans = select(func.count()).where(jobs.Run.job_id.not_in(select(MyJob.id)))
    assert session.scalar(orphans) == 0


def test_what_was_told_batch_by_batch_stays_where_it_is_broken_off(session: Session) -> None:
    note.enqueue_many(session, [{"number": n} for n in range(1200)])
    session.commit()
    next(Delete().in_batches(changing, Selection()))
    assert len(states(session)) == 700
    told = list(Cancel().in_batches(changing, Selection()))
    assert [(progress.seen, progress.changed) for progress in told] == [(500, 500), (700, 700)]


@pytest.mark.parametrize("change", [Cancel(), Retry(), Delete()], ids=lambda change: change.name)
def test_a_job_that_somebody_holds_is_left_alone_and_nothing_waits_for_it(
    database: Engine, session: Session, change: Change
) -> None:
    held, free = add(session, "scheduled"), add(session, "scheduled")
    with Session(database) as other:
        other.execute(update(MyJob).where(MyJob.id == held).values(priority=3))
        progress = all_of(change)
    assert progress == (2, 1)
    assert states(session)[held] == "scheduled"
    assert states(session).get(free) != "scheduled"


class TestRetrying:
    def test_of_several_with_one_unique_key_the_newest_runs_again(self, session: Session) -> None:
        old, new = (add(session, "failed", unique_key="k") for _ in range(2))
        alone = add(session, "failed", unique_key="another")
        assert all_of(Retry()) == (3, 2)
        assert states(session) == {old: "failed", new: "queued", alone: "queued"}


class TestReferences:
    def test_a_job_to_which_a_row_refers_is_left_and_the_others_go(self, session: Session) -> None:
        kept, gone, soft = (add(session, "succeeded") for _ in range(3))
        session.add_all([Receipt(job_id=kept), Receipt(soft_id=soft)])
        session.commit()
        assert all_of(Delete()) == (3, 2)
        assert states(session) == {kept: "succeeded"}
        assert session.scalars(select(Receipt.soft_id)).all() == [None, None]
        assert gone not in states(session)

    def test_a_reference_that_is_not_committed_yet_holds_its_job(self, database: Engine, session: Session) -> None:
        kept = add(session, "succeeded")
        with Session(database) as other:
            other.add(Receipt(job_id=kept))
            other.flush()
            assert all_of(Delete()) == (1, 0)
            other.commit()
        assert states(session) == {kept: "succeeded"}


class TestPrune:
    def test_what_ended_long_ago_goes_with_its_runs(self, session: Session) -> None:
        hour = timedelta(hours=1)
        ids = {name: add(session, name) for name in STATES}
        session.execute(update(MyJob).values(finished_at=func.now() - 2 * hour).where(MyJob.finished_at.is_not(None)))
        young = add(session, "succeeded")
        session.commit()
        assert jobs.delete(session, where=jobs.select(ended_before=3 * hour)).changed == 0
        assert jobs.delete(session, where=jobs.select(ended_before=hour)).changed == 3
        session.rollback()
        assert len(states(session)) == 8
        assert jobs.delete(session, where=jobs.select(ended_before=timedelta(seconds=3600))).changed == 3
        session.commit()
        assert states(session).keys() == {ids["blocked"], ids["scheduled"], ids["queued"], ids["running"], young}
        assert session.scalar(select(func.count()).select_from(jobs.Run)) == 5
