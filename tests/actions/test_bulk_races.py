"""A change of many jobs beside somebody else's commit: what does not match any more is left alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import ColumnElement, Engine, event, func, literal_column, select, text, update
from sqlalchemy.orm import Session

from sqla_jobs import Jobs
from sqla_jobs.actions.audit import changing
from sqla_jobs.actions.bulk_change import Change
from sqla_jobs.actions.jobs import Cancel, Delete, Erase, Retry
from sqla_jobs.actions.selection import Selection
from sqla_jobs.models.mapping import Models
from sqla_jobs.models.types import JobState
from tests.dashboard_shop import jobs
from tests.helpers import WAITING_HERE, wait_until

Act = Callable[[Session], object]
Job = jobs.Job


@pytest.fixture
def application() -> Jobs[Any]:
    return jobs


def add(session: Session, state: str, count: int = 10) -> None:
    ended = datetime.now(UTC) if state in ("failed", "succeeded") else None
    for number in range(count):
        job = Job(
            task="add", args={"a": number}, state=state, finished_at=ended, run_at=datetime(2099, 1, 1, tzinfo=UTC)
        )
        session.add(job)
        session.flush()
        if ended:
            session.add(jobs.Run(job_id=job.id, attempt=1, outcome=state, error="boom"))
    session.commit()


def retry_all(session: Session) -> None:
    for job_id in session.scalars(select(Job.id)):
        assert jobs.retry(session, job_id)


def start_all(session: Session) -> None:
    session.execute(update(Job).values(state="running", current_run_id=1, process_id=UUID(int=1), attempt=1))


def succeed_all(session: Session) -> None:
    session.execute(update(Job).values(state="succeeded", attempt=2))


def fail_all_for_another_reason(session: Session) -> None:
    session.execute(update(Job).values(attempt=2))
    for job_id in session.scalars(select(Job.id)).all():
        session.add(jobs.Run(job_id=job_id, attempt=2, outcome="failed", error="another reason"))


@contextmanager
def once_after_the_choice(engine: Engine, act: Callable[[], object]) -> Generator[list[str]]:
    """`act()` once the ids were chosen, and before anything is done to their jobs."""
    seen: list[str] = []

    def executed(connection: object, cursor: object, statement: str, *rest: object) -> None:
        if not seen and "ORDER BY sqla_jobs.id" in statement and "LIMIT" in statement and "DESC" not in statement:
            seen.append(statement)
            act()

    event.listen(engine, "after_cursor_execute", executed)
    yield seen
    event.remove(engine, "after_cursor_execute", executed)
    assert seen


def committed(engine: Engine, act: Act) -> Callable[[], None]:
    def run() -> None:
        with Session(engine) as other, other.begin():
            act(other)

    return run


class Gate:
    """A lock before which a statement waits whose selection has it: after its snapshot, before its first row."""

    KEY = 4711

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        with engine.begin() as connection:
            connection.execute(
                text(
                    "CREATE FUNCTION pass_gate(id bigint) RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$ BEGIN "
                    f"PERFORM pg_advisory_lock_shared({self.KEY}); PERFORM pg_advisory_unlock_shared({self.KEY}); "
                    "RETURN true; END $$"
                )
            )

    @contextmanager
    def closed_after_the_choice(self, meanwhile: Callable[[], object]) -> Generator[None]:
        """`meanwhile()` runs while the statement that changes jobs waits at the gate."""
        failures: list[BaseException] = []

        def open_once_somebody_waits() -> None:
            try:
                waiting = text(f"SELECT count(*) FROM {WAITING_HERE}")
                with self._engine.connect() as looking:
                    wait_until(lambda: looking.execute(waiting).scalar())
                meanwhile()
            except BaseException as error:  # noqa: BLE001 - told by the test's own thread
                failures.append(error)
            finally:
                holder.close()

        holder = self._engine.connect()
        thread = threading.Thread(target=open_once_somebody_waits)

        def close() -> None:
            holder.execute(select(func.pg_advisory_xact_lock(self.KEY)))
            thread.start()

        with once_after_the_choice(self._engine, close):
            yield
        thread.join()
        assert failures == []


@dataclass(frozen=True, slots=True, kw_only=True)
class Gated(Selection):
    def where(self, models: Models[Any]) -> list[ColumnElement[bool]]:
        return [*Selection.where(self, models), literal_column("pass_gate(sqla_jobs.id)") == literal_column("true")]


@pytest.mark.parametrize(
    ("change", "selection", "act", "becomes"),
    [
        (Delete(), Gated(states=(JobState.failed,)), retry_all, "queued"),
        (Cancel(), Gated(states=(JobState.scheduled,)), start_all, "running"),
        (Retry(), Gated(states=(JobState.failed,)), succeed_all, "succeeded"),
        # the job is failed before and after: only the run tells that it is another failure
        (Delete(), Gated(error="boom"), fail_all_for_another_reason, "failed"),
        (Retry(), Gated(error="boom"), fail_all_for_another_reason, "failed"),
        (Erase(), Gated(states=(JobState.failed,)), retry_all, "queued"),
        (Erase(), Gated(error="boom"), fail_all_for_another_reason, "failed"),
    ],
    ids=["delete", "cancel", "retry", "delete by error", "retry by error", "erase", "erase by error"],
)
def test_what_was_changed_after_the_statements_snapshot_is_left_alone(
    database: Engine, session: Session, change: Change, selection: Selection, act: Act, becomes: str
) -> None:
    add(session, "scheduled" if change == Cancel() else "failed")
    gate = Gate(database)
    with gate.closed_after_the_choice(committed(database, act)):
        begin = partial(changing, jobs._binding(), jobs._models, jobs.tasks, "ada")
        progress = [*change.in_batches(begin, selection)][-1]
    assert (progress.seen, progress.changed) == (10, 0)
    found = session.execute(select(Job.state, Job.cancel_requested_at, Job.args)).all()
    assert [(str(row[0]), row[1]) for row in found] == [(becomes, None)] * 10
    assert all(isinstance(row[2], dict) for row in found)
