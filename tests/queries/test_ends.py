"""What becomes of a job whose attempt ended or whose process is gone: each outcome, column by column."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, delete, func, insert, select, text, update
from sqlalchemy.orm import Session

from sqla_jobs.queries import Claimed, Queries, RunEnd, processes
from sqla_jobs.rules.outcomes import ERASED, Failure, Outcome
from tests.shop import jobs

QUERIES = Queries(jobs._models)
Job, Run, Process = jobs.Job, jobs.Run, jobs.Process
WHY = Failure("Error", "why", "where")
UNSEEN = Failure("TimeoutError", "its process was killed")
HOUR = timedelta(hours=1)


def begun(connection: Connection, number: int = 1, **values: Any) -> list[Claimed]:
    """Jobs that a process has claimed, in the middle of their attempts."""
    jobs_of = [{"task": "mark", "args": {"n": n}, "state": "queued"} for n in range(number)]
    connection.execute(insert(Job), jobs_of)
    me = processes.register(connection, jobs._models, kind="worker", queues={}, lease=30)
    claimed = QUERIES.claim(connection, me, {"default": number}, list(jobs.tasks))
    connection.execute(update(Job).where(Job.process_id == me).values({"attempt": 3, "max_attempts": 5, **values}))
    return [lease._replace(attempt=3) for lease in claimed]


def a_job(connection: Connection, lease: Claimed) -> Any:
    return connection.execute(select(Job.__table__).where(Job.id == lease.job_id)).one()


def runs(connection: Connection, lease: Claimed) -> list[Any]:
    return [*connection.execute(select(Run.__table__).where(Run.job_id == lease.job_id).order_by(Run.id))]


def finish(connection: Connection, lease: Claimed, outcome: Outcome, **more: Any) -> dict[int, str]:
    return QUERIES.finish_any(connection, [RunEnd(lease, outcome, 0.25, 0.5, **more)])


ENDS: dict[str, tuple[Outcome, str, int, str | None]] = {
    # what is stored, the state that follows, the attempts that are charged, and the outcome of the run
    "succeeded": (Outcome.succeeded('{"n": 7}'), "succeeded", 3, "succeeded"),
    "failed": (Outcome.failed(WHY), "failed", 3, "failed"),
    "cancelled": (Outcome.cancelled(WHY), "cancelled", 3, "cancelled"),
    "retried": (Outcome.retried(60.0, WHY), "scheduled", 3, "retried"),
    "snoozed": (Outcome.snoozed(60.0), "scheduled", 2, "snoozed"),
    "released": (Outcome.released(), "queued", 2, None),
    "released later": (Outcome.released(60.0), "scheduled", 2, None),
    "lost": (Outcome.lost(WHY), "queued", 3, "lost"),
}


@pytest.mark.parametrize("end", ENDS)
def test_each_outcome_is_written_in_full_and_no_other_job_is_touched(connection: Connection, end: str) -> None:
    outcome, state, attempt, kind = ENDS[end]
    mine, other = begun(connection, 2)
    before, same = a_job(connection, mine), a_job(connection, other)
    assert finish(connection, mine, outcome) == {}
    job = a_job(connection, mine)
    assert (job.state, job.attempt, job.current_run_id, job.process_id) == (state, attempt, None, None)
    ended = before.started_at + timedelta(seconds=0.5)
    assert job.finished_at == (ended if state in ("succeeded", "failed", "cancelled") else None)
    assert job.run_at == (ended + timedelta(seconds=60) if state == "scheduled" else before.run_at)
    assert (job.position > same.position) == (state == "queued"), "it goes to the end of its queue"
    assert state == "queued" or job.position == before.position
    assert a_job(connection, other) == same
    assert [run.outcome for run in runs(connection, mine)] == ([] if kind is None else [kind])
    for run in runs(connection, mine):
        assert (run.id, run.attempt, run.process_id) == (mine.run_id, 3, mine.process_id)
        assert run.started_at == before.started_at + timedelta(seconds=0.25)
        assert run.finished_at == ended
        assert run.result == ({"n": 7} if kind == "succeeded" else None)
        failure = outcome.failure
        assert (run.error_type, run.error, run.traceback) == (("Error", "why", "where") if failure else (None,) * 3)


@pytest.mark.parametrize("end", ENDS)
def test_a_cancel_request_ends_what_would_go_on(connection: Connection, end: str) -> None:
    outcome, state, _, kind = ENDS[end]
    (mine,) = begun(connection, cancel_requested_at=func.now())
    told = finish(connection, mine, outcome)
    assert told == ({mine.run_id: "cancelled"} if kind == "retried" else {})
    is_final = state in ("succeeded", "failed")
    assert a_job(connection, mine).state == (state if is_final else "cancelled")
    assert (a_job(connection, mine).finished_at is not None) == (a_job(connection, mine).state in ENDS)
    expected = {"retried": "cancelled"}.get(str(kind), kind)
    assert [run.outcome for run in runs(connection, mine)] == ([] if kind is None else [expected])


@pytest.mark.parametrize(
    ("outcome", "is_to_tell"),
    [
        (Outcome.failed(WHY), True),
        (Outcome.lost(WHY), True),
        (Outcome.retried(0.0, WHY), False),
        (Outcome.retried(0.0, UNSEEN), True),
        (Outcome.snoozed(0.0), False),
        (Outcome.cancelled(UNSEEN), False),
    ],
    ids=["failed", "lost", "retried", "retried by another process", "snoozed", "cancelled"],
)
def test_handlers_are_told_by_another_process_after_ten_seconds(
    connection: Connection, outcome: Outcome, is_to_tell: bool
) -> None:
    (mine,) = begun(connection)
    began = connection.scalar(select(func.clock_timestamp()))
    finish(connection, mine, outcome)
    ended = connection.scalar(select(func.clock_timestamp()))
    (run,) = runs(connection, mine)
    if is_to_tell:
        assert began <= run.untold_at - timedelta(seconds=10) <= ended
    else:
        assert run.untold_at is None


def test_progress_is_kept_and_that_of_the_end_replaces_it(connection: Connection) -> None:
    kept, replaced = begun(connection, 2, progress=0.25, progress_message="before")
    finish(connection, kept, Outcome.failed(WHY))
    finish(connection, replaced, Outcome.failed(WHY), progress=(0.75, None))
    told = [(a_job(connection, one).progress, a_job(connection, one).progress_message) for one in (kept, replaced)]
    assert told == [(0.25, "before"), (0.75, None)]


def test_an_attempt_that_is_given_back_is_never_less_than_none(connection: Connection) -> None:
    (mine,) = begun(connection, attempt=0)
    finish(connection, mine, Outcome.released())
    assert a_job(connection, mine).attempt == 0


@pytest.mark.parametrize("outcome", [Outcome.failed(WHY), ERASED], ids=["failed", "erased"])
def test_what_became_of_an_end_that_is_not_stored(connection: Connection, outcome: Outcome) -> None:
    known, rescued, gone, stored = begun(connection, 4)
    finish(connection, known, Outcome.failed(WHY))
    finish(connection, rescued, Outcome.lost(WHY))
    connection.execute(update(Job).where(Job.id == gone.job_id).values(process_id=uuid.uuid4()))
    ends = [RunEnd(one, outcome) for one in (known, rescued, gone, stored)]
    fates = QUERIES.finish_any(connection, ends)
    assert fates == {known.run_id: "known", rescued.run_id: "rescued", gone.run_id: "lost"}
    assert a_job(connection, stored).state == outcome.kind


def lose(connection: Connection, leases: list[Claimed]) -> None:
    QUERIES.finish_any(connection, [RunEnd(lease, Outcome.lost(WHY)) for lease in leases])


def rescue(connection: Connection, leases: list[Claimed]) -> None:
    connection.execute(delete(Process).where(Process.id == leases[0].process_id))
    assert {job.job_id for job in QUERIES.rescue(connection)} == {lease.job_id for lease in leases}


LOSING: dict[str, Callable[[Connection, list[Claimed]], None]] = {"said": lose, "rescued": rescue}


def lost_before(connection: Connection, leases: list[Claimed], times: int) -> None:
    """So many runs of each say that it was lost; one more says otherwise, and one more is another job's."""
    now = text("clock_timestamp()")  # after the job was inserted
    of_each = {"attempt": 1, "started_at": now, "finished_at": now, "outcome": "lost"}
    for lease in leases:
        ids = select(func.generate_series(1, times)).subquery()
        connection.execute(
            insert(Run).from_select(
                ["job_id", *of_each],
                select(text(str(lease.job_id)), text("1"), now, now, text("'lost'")).select_from(ids),
            )
        )
        connection.execute(insert(Run).values({**of_each, "job_id": lease.job_id, "outcome": "failed", "error": "x"}))
    (other,) = begun(connection)
    connection.execute(insert(Run).values({**of_each, "job_id": other.job_id}))


@pytest.mark.parametrize(("times", "wait"), [(2, 2.0), (3, 4.0), (12, 2048.0), (13, 3600.0)])
@pytest.mark.parametrize("way", LOSING)
def test_a_job_that_keeps_losing_its_process_waits_twice_as_long_each_time(
    connection: Connection, way: str, times: int, wait: float
) -> None:
    """From three quarters to five quarters of it: forty jobs that all miss one end are one case in a million."""
    waits = waits_after_losses(connection, way, times, jobs=40)
    assert 0.75 * wait <= min(waits) < 0.9 * wait
    assert 1.1 * wait < max(waits) <= 1.25 * wait


def waits_after_losses(connection: Connection, way: str, times: int, *, jobs: int) -> list[float]:
    """Seconds from the end of the attempt until each of so many jobs is due."""
    leases = begun(connection, jobs)
    lost_before(connection, leases, times)
    LOSING[way](connection, leases)
    mine: Any = select(Job.run_at - Run.finished_at).join(Run, Run.job_id == Job.id)
    mine = mine.where(Run.process_id == leases[0].process_id, Job.state == "scheduled")
    waits = [wait.total_seconds() for wait in connection.scalars(mine)]
    assert len(waits) == jobs
    return waits


@pytest.mark.parametrize(
    ("times", "values", "state"),
    [
        (0, {}, "queued"),
        (1, {}, "queued"),
        (2, {}, "scheduled"),
        (0, {"attempt": 5}, "failed"),
        (0, {"attempt": 4}, "queued"),
        (0, {"cancel_requested_at": func.now()}, "cancelled"),
        (0, {"attempt": 5, "cancel_requested_at": func.now()}, "cancelled"),
    ],
)
@pytest.mark.parametrize("way", LOSING)
def test_what_follows_a_loss(connection: Connection, way: str, times: int, values: dict[str, Any], state: str) -> None:
    (mine,) = begun(connection, **values)
    lost_before(connection, [mine], times)
    before = a_job(connection, mine)
    LOSING[way](connection, [mine])
    job = a_job(connection, mine)
    assert (job.state, job.current_run_id, job.process_id) == (state, None, None)
    assert (job.position > before.position) == (state == "queued")
    assert (job.run_at > before.run_at) == (state == "scheduled")
    assert (job.finished_at is not None) == (state in ("failed", "cancelled"))


def test_a_rescue_after_the_clock_went_back_leaves_a_run_that_ends_no_earlier_than_it_began(
    connection: Connection,
) -> None:
    (mine,) = begun(connection, started_at=func.now() + HOUR)
    rescue(connection, [mine])
    (run,) = runs(connection, mine)
    assert run.started_at == run.finished_at


@pytest.mark.parametrize(("lock", "rescued"), [("NO KEY UPDATE", 1), ("KEY SHARE", 2)])
def test_a_rescue_leaves_what_somebody_changes_and_not_what_is_referred_to(
    shared: Engine, connection: Connection, emptied: None, lock: str, rescued: int
) -> None:
    leases = begun(connection, 2)
    connection.execute(delete(Process))
    connection.commit()
    with shared.connect() as other:
        other.execute(text(f"SELECT FROM sqla_jobs WHERE id = {leases[0].job_id} FOR {lock}"))
        assert len(QUERIES.rescue(connection)) == rescued
        connection.rollback()


def test_an_end_leaves_a_job_that_somebody_changes_and_not_one_that_is_referred_to(
    shared: Engine, connection: Connection, emptied: None
) -> None:
    (lease,) = begun(connection)
    connection.commit()
    with shared.connect() as other:
        other.execute(text("SELECT FROM sqla_jobs FOR NO KEY UPDATE"))
        assert finish(connection, lease, Outcome.failed(WHY)) == {lease.run_id: "locked"}
        connection.rollback()
        other.rollback()
        other.execute(text("SELECT FROM sqla_jobs FOR KEY SHARE"))
        assert finish(connection, lease, Outcome.failed(WHY)) == {}


@pytest.mark.parametrize("way", LOSING)
def test_losses_in_a_row_end_a_job_that_counts_them_apart_and_use_no_attempt(connection: Connection, way: str) -> None:
    """After a snooze, and after a retry by hand, they are counted anew."""
    (mine,) = begun(connection, attempt=1, max_attempts=1, max_lost=2)
    told: list[tuple[str, int]] = []

    def again(act: Callable[[Connection, list[Claimed]], None]) -> None:
        act(connection, [claimed_again(connection, mine)] if told else [mine])
        job = a_job(connection, mine)
        told.append((job.state, job.attempt))

    def snooze(connection: Connection, leases: list[Claimed]) -> None:
        finish(connection, leases[0], Outcome.snoozed(0.0))

    def retry_by_hand() -> None:
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            assert jobs.retry(session, mine.job_id)
            session.commit()

    for act in (LOSING[way], snooze, LOSING[way], LOSING[way]):
        again(act)
    assert told == [("queued", 0), ("scheduled", 0), ("queued", 0), ("failed", 1)]
    retry_by_hand()
    again(LOSING[way])
    retry_by_hand()  # of a job that waits
    for _ in range(2):
        again(LOSING[way])
    assert told[4:] == [("scheduled", 1), ("scheduled", 2), ("failed", 3)]
    found = [(str(run.outcome), run.attempt) for run in runs(connection, mine)]
    lost = [("lost", attempt) for attempt in (1, 1, 2, 3, 3)]
    assert found == [("lost", 1), ("snoozed", 1), *lost]
    assert a_job(connection, mine).max_attempts == 3


def claimed_again(connection: Connection, lease: Claimed) -> Claimed:
    connection.execute(update(Job).where(Job.id == lease.job_id).values(state="queued"))
    me = processes.register(connection, jobs._models, kind="worker", queues={}, lease=30)
    (claimed,) = QUERIES.claim(connection, me, {"default": 1}, list(jobs.tasks))
    return claimed
