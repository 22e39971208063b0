"""Counts the effects that remain, and names each broken promise."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from benchmarks.torture import app
from benchmarks.torture.app import Echo, Effect, Trace, jobs
from benchmarks.torture.hostile import AT_WORK
from benchmarks.torture.load import Answer, Ledger
from sqla_jobs.models.types import StepKind

_LIVE = ("blocked", "scheduled", "queued", "running")
_BAD = ("failed", "cancelled")
_MAY_FAIL = {"hopeless", "once", *app.STOPPING}


class RunFact(NamedTuple):
    id: int
    outcome: str
    process_id: uuid.UUID | None


@dataclass
class JobFact:
    """A job, its runs in order, and the run ids of the effects that it left in each database.

    `needs` are the jobs for which it has to wait, directly or through batches. `steps` has the stored result of each
    step, `traces` the step and the value of each call of a step. `received` and `unread` are the payloads of its
    signals, in order. `result` is that of its run that succeeded. `renamed` are runs that left effects but are stored
    under other ids, since hostile rows have taken their own.
    """

    id: int
    n: int
    task: str
    state: str
    attempt: int
    max_attempts: int
    cancel_requested: bool
    if_failed: str | None = None
    needs: list[JobFact] = field(default_factory=list["JobFact"])
    runs: list[RunFact] = field(default_factory=list[RunFact])
    effects: list[int] = field(default_factory=list[int])
    echoes: list[int] = field(default_factory=list[int])
    steps: dict[str, Any] = field(default_factory=dict[str, Any])
    received: list[int] = field(default_factory=list[int])
    unread: list[int] = field(default_factory=list[int])
    traces: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    result: Any = None
    renamed: set[int] = field(default_factory=set[int])

    def __str__(self) -> str:
        runs = ", ".join(f"{run.id} {run.outcome}" for run in self.runs) or "none"
        asked = ", cancel requested" if self.cancel_requested else ""
        return (
            f"job {self.id} ({self.task}, n={self.n}) is {self.state}{asked} after attempt {self.attempt} of "
            f"{self.max_attempts}; runs: {runs}; effects of runs: {self.effects}"
        )

    @property
    def succeeded(self) -> list[int]:
        return [run.id for run in self.runs if run.outcome == "succeeded"]


class Facts(NamedTuple):
    """The contents of the databases at the end. Strays are runs and effects whose jobs do not exist."""

    jobs: dict[int, JobFact]
    strays: list[str]
    process_pids: list[int]


def read_facts(session: Session, second: Session) -> Facts:
    """Read everything except hostile rows from both databases. The facts about some 100,000 jobs fit into memory."""
    job, run, edge = jobs.Job, jobs.Run, jobs._models.tables["edges"].c
    columns = (job.id, job.args["n"].as_integer(), job.task, job.state, job.attempt, job.max_attempts)
    judged = or_(job.oddity.is_(None), job.oddity.in_(AT_WORK))
    left_out = set(session.scalars(select(job.id).where(~judged)))
    rows = session.execute(select(*columns, job.cancel_requested_at.is_not(None), job.if_failed).where(judged))
    facts = {row[0]: JobFact(*row) for row in rows}
    of_batches = select(edge.job_id, job.id).where(job.batch_id == edge.batch_id)
    needed = select(edge.job_id, edge.needs_id).where(edge.needs_id.is_not(None)).union_all(of_batches)
    for job_id, needs_id in session.execute(needed):
        if job_id in facts and needs_id in facts:
            facts[job_id].needs.append(facts[needs_id])
    strays, taken = list[str](), set[int]()
    runs = select(run.id, run.job_id, run.outcome, run.process_id).order_by(run.id)
    for run_id, job_id, outcome, process_id in session.execute(runs):
        if job_id in facts:
            facts[job_id].runs.append(RunFact(run_id, outcome, process_id))
        elif job_id in left_out:
            taken.add(run_id)
        else:
            strays.append(f"run {run_id} is of job {job_id}, which is not there")
    for effect in session.scalars(select(Effect).order_by(Effect.id)):
        if effect.job_id in facts:
            facts[effect.job_id].effects.append(effect.run_id)
            facts[effect.job_id].renamed.update(taken & {effect.run_id})
        elif effect.job_id not in left_out:
            strays.append(f"an effect n={effect.n} is of job {effect.job_id}, which is not there")
    for echo in second.scalars(select(Echo).order_by(Echo.id)):
        if echo.job_id in facts:
            facts[echo.job_id].echoes.append(echo.run_id)
    _read_steps(session, facts)
    return Facts(facts, strays, list(session.scalars(select(jobs.Process.pid))))


def _read_steps(session: Session, facts: Mapping[int, JobFact]) -> None:
    """Read the steps, signals, traces and results of the jobs that have them."""
    step, sent, run = jobs.Step, jobs.Signal, jobs.Run
    traced = [fact.id for fact in facts.values() if fact.task in app.TRACED | app.TRACED_APART | app.ASKING]
    stored = select(step.job_id, step.name, step.kind, step.result).where(step.finished_at.is_not(None))
    for job_id, name, kind, result in session.execute(stored.order_by(step.job_id, step.number, step.started_at)):
        if job_id in facts and kind == StepKind.step:
            facts[job_id].steps[name] = result
        elif job_id in facts and kind == StepKind.signal:
            facts[job_id].received.append(result)
    for job_id, payload in session.execute(select(sent.job_id, sent.payload).order_by(sent.id)):
        if job_id in facts:
            facts[job_id].unread.append(payload)
    for trace in session.scalars(select(Trace).order_by(Trace.id)):
        if trace.job_id in facts:
            facts[trace.job_id].traces.append((trace.step, trace.value))
    results = select(run.job_id, run.result).where(run.outcome == "succeeded", run.job_id.in_(traced))
    for job_id, result in session.execute(results):
        facts[job_id].result = result


def breaches(facts: Facts, ledger: Ledger, services: Collection[Collection[int]]) -> list[str]:
    """Return each broken promise as a line that names the job. `services` contains the pids of each living service."""
    found = [*facts.strays, *ledger.surprises, *_enqueued(facts, ledger)]
    for job in facts.jobs.values():
        found += [f"{said}: {job}" for rule in _RULES for said in rule(job, ledger)]
    return [*found, *_follow_ups(facts), *_processes(facts, services)]


def _enqueued(facts: Facts, ledger: Ledger) -> Iterator[str]:
    """A job exists if and only if its transaction committed."""
    there = Counter(job.n for job in facts.jobs.values() if job.task != "follow")
    for n, (task, answer) in ledger.enqueued.items():
        allowed = {Answer.acknowledged: {1}, Answer.refused: {0}, Answer.unknown: {0, 1}}[answer]
        if there[n] not in allowed:
            yield f"{there[n]} jobs of n={n} ({task}), whose commit was {answer}"
    for n in there.keys() - ledger.enqueued.keys():
        yield f"nobody enqueued n={n}, and there is a job of it"


def _ended(job: JobFact, ledger: Ledger) -> Iterator[str]:
    if job.state in _LIVE:
        yield "stuck"


def _effects(job: JobFact, ledger: Ledger) -> Iterator[str]:
    """The run that succeeded leaves the only effect of a transactional task. A plain task has at least one effect."""
    due = job.succeeded if job.state == "succeeded" else []
    is_exact = len(job.effects) == len(due) if job.renamed else job.effects == due
    if job.task in app.TRANSACTIONAL and not is_exact:
        yield "not exactly the effect of the run that succeeded"
    if job.task in app.PLAIN:
        if job.state == "succeeded" and not job.effects:
            yield "no effect of a plain job that succeeded"
        if unknown := set(job.effects) - {run.id for run in job.runs} - job.renamed:
            yield f"effects of runs {sorted(unknown)} that have no row"
        if len(set(job.effects)) < len(job.effects):
            yield "one run was executed twice"
        elif len(job.effects) > job.max_attempts:
            yield "begun more often than it may be tried"
    if job.task == "both" and not job.renamed and not set(job.succeeded) <= set(job.echoes):
        yield "succeeded, and what that run wrote to the second database is missing"


def _attempts(job: JobFact, ledger: Ledger) -> Iterator[str]:
    """Every attempt leaves a run, and a snooze gives the attempt back."""
    charged = sum(run.outcome != "snoozed" for run in job.runs)
    if charged != job.attempt:
        yield f"{job.attempt} attempts and {charged} runs that were charged"


def _outcome(job: JobFact, ledger: Ledger) -> Iterator[str]:
    """A job's state matches its last run, and is allowed by its task and its cancels."""
    outcomes = [run.outcome for run in job.runs]
    if outcomes.count("succeeded") != (job.state == "succeeded"):
        yield "its state and its succeeded runs do not agree"
    for ended in ("succeeded", "failed", "cancelled"):
        if ended in outcomes[:-1]:
            yield f"a run after one that {ended}"
    is_after_failure = job.if_failed == "cancel" and any(need.state in _BAD for need in job.needs)
    if job.state == "cancelled" and not job.cancel_requested and not is_after_failure:
        yield "cancelled, and nobody asked for it"
    if job.state == "succeeded" and job.task in ("hopeless", "poison"):
        yield "succeeded, which this task never does"
    if job.state == "failed" and (job.task not in _MAY_FAIL or job.attempt < job.max_attempts):
        yield "failed, and should have been tried again"
    if job.task == "poison" and job.state != "cancelled" and outcomes != ["lost"] * job.max_attempts:
        yield "a job that kills its process was not lost as often as it may be tried"


def _graphs(job: JobFact, ledger: Ledger) -> Iterator[str]:
    """A job begins only after all jobs that it needs have ended, and ended as required."""
    for need in job.needs:
        if job.runs and need.state in _LIVE:
            yield f"begun before the end of {need}"
        if job.runs and need.state in _BAD and job.if_failed == "cancel":
            yield f"begun after the failure of {need}"
        if job.effects and need.effects and min(job.effects) < max(need.effects):
            yield f"begun before {need}"


def _cancels(job: JobFact, ledger: Ledger) -> Iterator[str]:
    answer = ledger.cancels.get(job.id)
    if answer is Answer.acknowledged and not job.cancel_requested:
        yield "an acknowledged cancel is forgotten"
    if job.cancel_requested and answer is None:
        yield "nobody cancelled it, and it says so"


def _steps(job: JobFact, ledger: Ledger) -> Iterator[str]:
    """A step of a transactional task has its effect exactly once, and any other step has it at least once."""
    stored = [*job.steps.items()]
    if job.task in app.TRACED and sorted(job.traces) != sorted(stored):
        yield f"its steps {stored} are not exactly those that had an effect, {job.traces}"
    if job.task in app.TRACED_APART and not set(stored) <= set(job.traces):
        yield f"its steps {stored} are not among those that had an effect, {job.traces}"
    is_whole = job.result == [value for _, value in stored] and len(stored) == len(app.STEPS)
    if job.task in (app.TRACED | app.TRACED_APART) - app.ASKING and job.state == "succeeded" and not is_whole:
        yield f"it has seen {job.result}, and {stored} is stored"


def _signals(job: JobFact, ledger: Ledger) -> Iterator[str]:
    """Each signal is received once, or still waits for its job."""
    there = [*job.received, *job.unread]
    sent = ledger.of_jobs.get(job.id, {})
    if len(set(there)) < len(there):
        yield f"a signal is there twice, among {there}"
    if lost := [payload for payload, answer in sent.items() if answer is Answer.acknowledged and payload not in there]:
        yield f"the signals {lost} are lost, and {there} are there"
    if strange := [payload for payload in there if sent.get(payload, Answer.refused) is Answer.refused]:
        yield f"nobody sent the signals {strange}"
    in_order = [payload for payload in there if sent.get(payload) is Answer.acknowledged]
    if in_order != sorted(in_order):
        yield f"the signals {job.received} came out of order, and {job.unread} are left"
    seen = [payload for payload in job.result or () if payload is not None]
    if job.task in app.ASKING and job.state == "succeeded" and seen != job.received:
        yield f"it has seen the signals {job.result}, and {job.received} are stored"


_RULES: list[Callable[[JobFact, Ledger], Iterator[str]]] = [
    *(_ended, _effects, _attempts, _outcome, _graphs, _cancels, _steps, _signals)
]


def _follow_ups(facts: Facts) -> Iterator[str]:
    """There is exactly one follow-up job for each effect of a job that enqueues one."""
    follow_ups = Counter(job.n for job in facts.jobs.values() if job.task == "follow")
    for job in facts.jobs.values():
        if job.task in app.CHAINS and follow_ups.pop(job.n, 0) != len(job.effects):
            yield f"not one follow-up job for each effect: {job}"
    for n in follow_ups:
        yield f"a follow-up job of n={n}, which no job enqueued"


def lost_by_step(facts: Facts, stepped_over: Collection[int]) -> list[str]:
    """Return the runs that living processes lost when the clock stepped. Leave out processes that a job stopped."""
    lost = [(job, run) for job in facts.jobs.values() for run in job.runs if run.outcome == "lost"]
    stopped = {run.process_id for job, run in lost if job.task in app.STOPPING}
    return [
        f"run {run.id} was lost when the clock stepped: {job}"
        for job, run in lost
        if run.id in stepped_over and run.process_id not in stopped
    ]


def _processes(facts: Facts, services: Collection[Collection[int]]) -> Iterator[str]:
    """Every row of a process belongs to a living process, and every living service has such a row."""
    living = {pid for pids in services for pid in pids}
    for pid in facts.process_pids:
        if pid not in living:
            yield f"a row is left of a process, pid {pid}, that is not there"
    for pids in services:
        if not set(pids) & set(facts.process_pids):
            yield f"no row is there of the living processes {sorted(pids)}"
