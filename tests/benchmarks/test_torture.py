"""The torture program: a short run of it, its plan, its proxy, and that its verdict finds what is broken."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
from sqlalchemy import Engine, case, delete, insert, literal, select, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from benchmarks.torture import app
from benchmarks.torture.faults import KINDS
from benchmarks.torture.load import Answer, Ledger
from benchmarks.torture.verdict import breaches, read_facts
from tests.conftest import ROOT
from tests.helpers import wait_until

pytestmark = pytest.mark.slow


jobs, Effect = app.jobs, app.Effect


@pytest.mark.timeout(480)
def test_a_minute_of_torture_breaks_no_promise() -> None:
    """With the drain. Every kind of fault, and half the load, which else takes most of two processors."""
    command = [sys.executable, "-m", "benchmarks.torture", "--minutes", "0.5", "--rate", "20", "--seed", "1"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as torture:
        try:
            said, _ = torture.communicate(timeout=460)
        finally:
            torture.send_signal(signal.SIGTERM)  # it takes its workers and its server with it
    assert torture.returncode == 0, said
    assert "no breach" in said
    for kind in KINDS:
        assert f"s  {kind}" in said


@pytest.fixture
def ledger(engine: Engine) -> Ledger:
    """After a small load that a worker of this process has run without any fault."""
    app.Base.metadata.create_all(engine)
    app.SecondBase.metadata.create_all(engine)
    jobs.bind(engine)
    names = ["write", "mark", "chain", "snooze", "flaky", "hopeless", "write", "mark", "once", "write", "both"]
    names += ["stepped", "stepped_apart", "ask"]
    with Session(engine) as session:
        for n, name in enumerate(names):
            jobs.tasks[name].enqueue(session, n=n, seconds=0.01)
        asking = of(session, "ask")
        for payload in (1, 2):
            jobs.signal(session, asking, "told", payload)
        session.commit()
    with jobs.worker(bind=engine, clock=False):
        _wait_until_ended(engine)
    return Ledger(
        {n: (name, Answer.acknowledged) for n, name in enumerate(names)},
        signals=dict.fromkeys((1, 2), (asking, Answer.acknowledged)),
    )


def _wait_until_ended(engine: Engine) -> None:
    def ended() -> bool:
        live = jobs.Job.state.in_(["scheduled", "queued", "running"])
        with Session(engine) as session:
            return session.scalar(select(jobs.Job.id).where(live).limit(1)) is None

    wait_until(ended)


def of(session: Session, task: str) -> int:
    """The id of the first job of that task."""
    found = session.scalar(select(jobs.Job.id).where(jobs.Job.task == task).order_by(jobs.Job.id).limit(1))
    assert found is not None
    return found


def double_an_effect(session: Session, task: str = "write") -> None:
    columns = (Effect.n, Effect.task, Effect.job_id, Effect.run_id)
    chosen = select(*columns).where(Effect.job_id == of(session, task))
    session.execute(insert(Effect).from_select([column.key for column in columns], chosen))


def double_a_plain_run(session: Session) -> None:
    double_an_effect(session, "mark")


def lose_an_effect(session: Session) -> None:
    session.execute(delete(Effect).where(Effect.job_id == of(session, "mark")))


def write_in_vain(session: Session) -> None:
    session.add(Effect(n=5, task="hopeless", job_id=of(session, "hopeless"), run_id=1))


def lose_a_job(session: Session) -> None:
    job_id = of(session, "write")
    session.execute(delete(Effect).where(Effect.job_id == job_id))
    session.execute(delete(jobs.Run).where(jobs.Run.job_id == job_id))
    session.execute(delete(jobs.Job).where(jobs.Job.id == job_id))


def lose_a_run(session: Session) -> None:
    session.execute(delete(jobs.Run).where(jobs.Run.job_id == of(session, "flaky"), jobs.Run.outcome == "retried"))


def be_stuck(session: Session) -> None:
    session.execute(update(jobs.Job).where(jobs.Job.id == of(session, "snooze")).values(state="queued"))


def follow_twice(session: Session) -> None:
    app.follow.options(delay=3600).enqueue(session, n=2, seconds=0.0)


def succeed_twice(session: Session) -> None:
    session.add(jobs.Run(job_id=of(session, "write"), attempt=2, outcome="succeeded"))


def give_up_early(session: Session) -> None:
    session.execute(update(jobs.Job).where(jobs.Job.task == "hopeless").values(attempt=2))


def cancel_by_itself(session: Session) -> None:
    session.execute(update(jobs.Job).where(jobs.Job.task == "hopeless").values(state="cancelled"))


def begin_twice(session: Session) -> None:
    job_id = of(session, "once")
    session.add(Effect(n=8, task="once", job_id=job_id, run_id=1000))
    session.add(jobs.Run(id=1000, job_id=job_id, attempt=1, outcome="lost"))


def lose_an_echo(session: Session) -> None:
    session.execute(delete(app.Echo).where(app.Echo.job_id == of(session, "both")))


def call_a_step_twice(session: Session) -> None:
    trace = app.Trace
    columns = (trace.job_id, trace.step, trace.value)
    chosen = select(*columns).where(trace.job_id == of(session, "stepped"), trace.step == "first")
    session.execute(insert(trace).from_select([column.key for column in columns], chosen))


def forget_a_step(session: Session) -> None:
    of_job = jobs.Step.job_id == of(session, "stepped_apart")
    session.execute(delete(jobs.Step).where(of_job, jobs.Step.name == "third"))


def lose_a_signal(session: Session) -> None:
    of_job = jobs.Step.job_id == of(session, "ask")
    session.execute(delete(jobs.Step).where(of_job, jobs.Step.name == "told (2)"))


def keep_a_signal(session: Session) -> None:
    session.add(jobs.Signal(job_id=of(session, "ask"), name="told", payload=1))


def send_a_signal(session: Session) -> None:
    session.add(jobs.Signal(job_id=of(session, "ask"), name="told", payload=99))


def swap_two_signals(session: Session) -> None:
    step = jobs.Step
    session.execute(
        update(step)
        .where(step.kind == "signal")
        .values(result=case((step.name == "told", literal(2, JSONB)), else_=literal(1, JSONB)))
    )


def leave_a_row(session: Session) -> None:
    session.add(jobs.Process(pid=123))


BREACHES: dict[Callable[[Session], None], str] = {
    double_an_effect: "not exactly the effect of the run that succeeded: job 1 (write",
    double_a_plain_run: "one run was executed twice: job 2 (mark",
    lose_an_effect: "no effect of a plain job that succeeded: job 2 (mark",
    write_in_vain: "not exactly the effect of the run that succeeded: job 6 (hopeless",
    lose_a_job: "0 jobs of n=0 (write), whose commit was acknowledged",
    lose_a_run: "2 attempts and 1 runs that were charged: job 5 (flaky",
    be_stuck: "stuck: job 4 (snooze, n=3) is queued",
    follow_twice: "not one follow-up job for each effect: job 3 (chain",
    succeed_twice: "a run after one that succeeded: job 1 (write",
    give_up_early: "failed, and should have been tried again: job 6 (hopeless",
    cancel_by_itself: "cancelled, and nobody asked for it: job 6 (hopeless",
    begin_twice: "begun more often than it may be tried: job 9 (once",
    lose_an_echo: "succeeded, and what that run wrote to the second database is missing: job 11 (both",
    call_a_step_twice: "its steps ",
    forget_a_step: "it has seen ",
    lose_a_signal: "the signals [2] are lost, and [1] are there: job 14 (ask",
    keep_a_signal: "a signal is there twice, among [1, 2, 1]: job 14 (ask",
    send_a_signal: "nobody sent the signals [99]: job 14 (ask",
    swap_two_signals: "the signals [2, 1] came out of order, and [] are left: job 14 (ask",
    leave_a_row: "a row is left of a process, pid 123, that is not there",
}


def test_the_verdict_names_what_is_broken_and_nothing_else(engine: Engine, ledger: Ledger) -> None:
    with Session(engine) as session:

        def verdict(*services: set[int]) -> list[str]:
            session.flush()
            return breaches(read_facts(session, session), ledger, services)

        assert verdict() == []
        for break_something, said in BREACHES.items():
            break_something(session)
            found = verdict()
            assert any(line.startswith(said) for line in found), found
            session.rollback()
        ledger.enqueued |= {0: ("write", Answer.refused), 99: ("write", Answer.unknown)}
        assert verdict() == ["1 jobs of n=0 (write), whose commit was refused"]
        ledger.enqueued |= {0: ("write", Answer.unknown)}
        ledger.cancels[1] = Answer.acknowledged
        forgotten, missing = verdict({4711})
        assert forgotten.startswith("an acknowledged cancel is forgotten: job 1")
        assert missing == "no row is there of the living processes [4711]"
