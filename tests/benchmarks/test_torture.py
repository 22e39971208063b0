"""The torture program: a short run of it, its plan, its proxy, and that its verdict finds what is broken."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections import deque
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine, case, delete, insert, literal, select, text, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import Session

from benchmarks.proxy import Proxy
from benchmarks.torture import app, refusals
from benchmarks.torture.hostile import ROWS, Hostile
from benchmarks.torture.load import Answer, Ledger
from benchmarks.torture.plan import KINDS, plan
from benchmarks.torture.signals import Signals
from benchmarks.torture.verdict import breaches, lost_by_step, read_facts
from tests.conftest import ROOT, processes_of_ours
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_torture_that_is_interrupted_leaves_nothing_behind(number: signal.Signals) -> None:
    command = [sys.executable, "-m", "benchmarks.torture", "--seed", "1"]
    before = processes_of_ours("nothing carries this mark")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # the server runs as another user
        environment = os.environ | {"TMPDIR": folder}
        with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as torture:
            assert torture.stdout is not None
            _, first_fault = torture.stdout.readline(), torture.stdout.readline()
            torture.send_signal(number)
            torture.send_signal(number)
            assert torture.wait(60) == 128 + number
        assert " s  " in first_fault
        assert list(Path(folder).iterdir()) == []
    assert list(Path("/run/netns").glob(f"torture-{torture.pid}-*")) == []
    assert processes_of_ours(f"TMPDIR={folder}") == before


@pytest.mark.parametrize("seconds", [45, 105, 585])
def test_a_plan_has_every_fault_in_every_minute_and_is_that_of_its_seed(seconds: float) -> None:
    faults = plan(random.Random(7), seconds)
    assert faults == plan(random.Random(7), seconds) != plan(random.Random(8), seconds)
    assert faults[0].at >= 3
    assert faults[-1].at < seconds
    for start in range(0, max(1, int(seconds) - 59), 60):
        assert {fault.kind for fault in faults if start <= fault.at - 3 < start + 90} == set(KINDS)


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
    with jobs.worker(bind=engine):
        _wait_until_ended(engine)
    return Ledger(
        {n: (name, Answer.acknowledged) for n, name in enumerate(names)},
        signals=dict.fromkeys((1, 2), (asking, Answer.acknowledged)),
    )


def test_each_job_that_asks_gets_its_signals_and_one_that_is_not_there_gets_none(engine: Engine) -> None:
    app.Base.metadata.create_all(engine)
    with Session(engine) as session:
        job = app.ask_awaited.enqueue(session, n=1, seconds=0.0)
        session.commit()
        job_id = job.id
    ledger = Ledger(asking=deque([job_id, job_id + 1]))
    signals = Signals(engine, ledger, seed=1)
    signals.start()
    wait_until(lambda: len([1 for _, answer in ledger.signals.values() if answer is Answer.acknowledged]) == 2)
    signals.stop()
    assert not signals.are_sent
    with Session(engine) as session:
        sent = session.execute(select(jobs.Signal.job_id, jobs.Signal.payload)).all()
    assert {(one, payload) for one, payload in sent} == {
        (one, payload) for payload, (one, answer) in ledger.signals.items() if answer is Answer.acknowledged
    }


def _wait_until_ended(engine: Engine) -> None:
    def ended() -> bool:
        live = jobs.Job.state.in_(["scheduled", "queued", "running"])
        with Session(engine) as session:
            return session.scalar(select(jobs.Job.id).where(live).limit(1)) is None

    wait_until(ended)


def verdict(engine: Engine, ledger: Ledger, *services: set[int]) -> list[str]:
    with Session(engine) as session:
        return breaches(read_facts(session, session), ledger, services)


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


def write_without_the_lease(session: Session) -> None:
    session.execute(update(Effect).where(Effect.job_id == of(session, "write")).values(run_id=Effect.run_id + 1000))


def write_in_vain(session: Session) -> None:
    session.add(Effect(n=5, task="hopeless", job_id=of(session, "hopeless"), run_id=1))


def lose_a_job(session: Session) -> None:
    job_id = of(session, "write")
    session.execute(delete(Effect).where(Effect.job_id == job_id))
    session.execute(delete(jobs.Run).where(jobs.Run.job_id == job_id))
    session.execute(delete(jobs.Job).where(jobs.Job.id == job_id))


def lose_only_the_row(session: Session) -> None:
    session.execute(delete(jobs.Job).where(jobs.Job.id == of(session, "write")))


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


def store_what_no_step_returned(session: Session) -> None:
    step = jobs.Step
    session.execute(update(step).where(step.job_id == of(session, "stepped_apart")).values(result="another"))


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


def test_the_verdict_of_a_quiet_run_is_clean(engine: Engine, ledger: Ledger) -> None:
    assert verdict(engine, ledger) == []


@pytest.mark.parametrize(
    ("break_something", "said"),
    [
        (double_an_effect, "not exactly the effect of the run that succeeded: job 1 (write"),
        (double_a_plain_run, "one run was executed twice: job 2 (mark"),
        (lose_an_effect, "no effect of a plain job that succeeded: job 2 (mark"),
        (write_without_the_lease, "not exactly the effect of the run that succeeded: job 1 (write"),
        (write_in_vain, "not exactly the effect of the run that succeeded: job 6 (hopeless"),
        (lose_a_job, "0 jobs of n=0 (write), whose commit was acknowledged"),
        (lose_only_the_row, "an effect n=0 is of job 1, which is not there"),
        (lose_a_run, "2 attempts and 1 runs that were charged: job 5 (flaky"),
        (be_stuck, "stuck: job 4 (snooze, n=3) is queued"),
        (follow_twice, "not one follow-up job for each effect: job 3 (chain"),
        (succeed_twice, "a run after one that succeeded: job 1 (write"),
        (give_up_early, "failed, and should have been tried again: job 6 (hopeless"),
        (cancel_by_itself, "cancelled, and nobody asked for it: job 6 (hopeless"),
        (begin_twice, "begun more often than it may be tried: job 9 (once"),
        (lose_an_echo, "succeeded, and what that run wrote to the second database is missing: job 11 (both"),
        (call_a_step_twice, "its steps "),
        (store_what_no_step_returned, "its steps "),
        (forget_a_step, "it has seen "),
        (lose_a_signal, "the signals [2] are lost, and [1] are there: job 14 (ask"),
        (keep_a_signal, "a signal is there twice, among [1, 2, 1]: job 14 (ask"),
        (send_a_signal, "nobody sent the signals [99]: job 14 (ask"),
        (swap_two_signals, "the signals [2, 1] came out of order, and [] are left: job 14 (ask"),
        (leave_a_row, "a row is left of a process, pid 123, that is not there"),
    ],
)
def test_the_verdict_names_what_is_broken(
    engine: Engine, ledger: Ledger, break_something: Callable[[Session], None], said: str
) -> None:
    with Session(engine) as session:
        break_something(session)
        session.commit()
    found = verdict(engine, ledger)
    assert any(line.startswith(said) for line in found), found


@pytest.mark.parametrize(
    ("answer", "n", "said"),
    [
        (Answer.refused, 0, ["1 jobs of n=0 (write), whose commit was refused"]),
        (Answer.unknown, 0, []),
        (Answer.acknowledged, 99, ["0 jobs of n=99 (write), whose commit was acknowledged"]),
        (Answer.refused, 99, []),
        (Answer.unknown, 99, []),
    ],
)
def test_a_job_is_there_if_and_only_if_its_commit_was(
    engine: Engine, ledger: Ledger, answer: Answer, n: int, said: list[str]
) -> None:
    ledger.enqueued[n] = ("write", answer)
    assert verdict(engine, ledger) == said


def test_the_verdict_names_forgotten_cancels_and_workers_without_a_row(engine: Engine, ledger: Ledger) -> None:
    ledger.cancels[1] = Answer.acknowledged
    forgotten, missing = verdict(engine, ledger, {4711})
    assert forgotten.startswith("an acknowledged cancel is forgotten: job 1")
    assert missing == "no row is there of the living processes [4711]"


def test_a_run_lost_to_a_step_of_the_clock_is_named_unless_a_job_stopped_its_process(
    engine: Engine, ledger: Ledger
) -> None:
    lost, stopped = (uuid.uuid4() for _ in range(2))
    with Session(engine) as session:
        for n, task, process_id in ((901, "write", lost), (902, "write", stopped), (903, "hang", stopped)):
            job = jobs.Job(task=task, args={"n": n, "seconds": 0}, state="failed", attempt=1)
            session.add(job)
            session.flush()
            session.add(jobs.Run(id=n, job_id=job.id, attempt=1, outcome="lost", process_id=process_id))
        session.commit()
        facts = read_facts(session, session)
    (said,) = lost_by_step(facts, {901, 902})
    assert said.startswith("run 901 was lost when the clock stepped: job")
    assert lost_by_step(facts, set()) == []


def test_hostile_rows_are_refused_or_taken_and_left_out_of_the_verdict(engine: Engine, ledger: Ledger) -> None:
    hostile = Hostile(engine, random.Random(7))
    for _ in ROWS:
        hostile.add()
    assert hostile.answers.total() == len(ROWS)
    assert set(hostile.answers) == {"accepted", "refused"}
    assert verdict(engine, ledger) == []


def test_a_run_whose_id_a_hostile_row_has_taken_is_no_breach_and_a_second_effect_still_is(
    engine: Engine, ledger: Ledger
) -> None:
    with Session(engine) as session:
        job_id = of(session, "write")
        hostile = jobs.Job(task="mark", args={}, oddity="hostile", state="failed")
        session.add(hostile)
        session.flush()
        session.add(jobs.Run(id=2000, job_id=hostile.id, attempt=1, outcome="lost"))
        session.execute(update(Effect).where(Effect.job_id == job_id).values(run_id=2000))
        session.commit()
    assert verdict(engine, ledger) == []
    with Session(engine) as session:
        double_an_effect(session)
        session.commit()
    (said,) = verdict(engine, ledger)
    assert said.startswith("not exactly the effect of the run that succeeded: job 1 (write")


def test_a_hostile_row_comes_again_after_a_server_that_is_away(engine: Engine) -> None:
    hostile = Hostile(engine, random.Random(7))
    hostile.add()  # there are no tables yet, which is nothing that the row is to blame for
    assert hostile.answers.total() == 0
    app.Base.metadata.create_all(engine)
    for _ in ROWS:
        hostile.add()
    assert hostile.answers.total() == len(ROWS)


def change(engine: Engine, statement: str, **values: object) -> None:
    with engine.begin() as connection:
        connection.execute(text(statement), values)


TAKE = "UPDATE sqla_jobs SET state = 'running', attempt = 1, current_run_id = id, process_id = gen_random_uuid() "
END = "UPDATE sqla_jobs SET state = 'succeeded', finished_at = now(), current_run_id = NULL, process_id = NULL "
MARKED = "WHERE oddity = :oddity"
KEEP = "INSERT INTO sqla_runs (job_id, attempt, outcome) SELECT id, 1, 'succeeded' FROM sqla_jobs "
FORGET = "DELETE FROM sqla_runs WHERE job_id IN (SELECT id FROM sqla_jobs WHERE oddity = :oddity)"
DELETE = "DELETE FROM sqla_jobs "


@pytest.mark.parametrize(
    ("oddity", "before", "refused"),
    [
        ("claim", [], TAKE + MARKED),
        ("end", [TAKE], END + MARKED),
        ("run", [TAKE, END], KEEP + MARKED),
        ("delete", [], DELETE + MARKED),
        ("delete run", [], FORGET),
    ],
)
def test_a_trigger_refuses_marked_rows_until_it_is_dropped(
    engine: Engine, oddity: str, before: list[str], refused: str
) -> None:
    app.Base.metadata.create_all(engine)
    refusals.refuse(engine)
    if oddity in refusals.AT_WORK:
        change(engine, "INSERT INTO sqla_jobs (task, args, oddity) VALUES ('mark', '{}', :oddity)", oddity=oddity)
    for statement in before:
        change(engine, statement + MARKED, oddity=oddity)
    with pytest.raises(ProgrammingError, match="a trigger refuses this row"):
        change(engine, refused, oddity=oddity)
    change(engine, FORGET, oddity="old")
    change(engine, DELETE + MARKED, oddity="old")
    refusals.permit(engine)
    change(engine, refused, oddity=oddity)


def test_a_muted_proxy_passes_requests_on_and_holds_the_answers_back() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        Proxy(server.getsockname()) as proxy,
        socket.create_connection((proxy.listen, proxy.port), timeout=10) as client,
        server.accept()[0] as there,
    ):
        proxy.mute(b"question")
        client.sendall(b"hello")
        assert there.recv(100) == b"hello"
        there.sendall(b"hello")
        assert client.recv(100) == b"hello"
        client.sendall(b"a question")
        assert there.recv(100) == b"a question"
        there.sendall(b"answer")
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(100)
        client.settimeout(10)
        proxy.go_on()
        assert client.recv(100) == b"answer"
