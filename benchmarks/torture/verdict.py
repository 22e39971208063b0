"""Counts what was left behind, and names each promise that was broken."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from benchmarks.torture.app import CHAINS, PLAIN, STOPPING, TRANSACTIONAL, Echo, Effect, jobs
from benchmarks.torture.load import Answer, Ledger
from benchmarks.torture.refusals import AT_WORK

_LIVE = ("blocked", "scheduled", "queued", "running")
_BAD = ("failed", "cancelled")
_MAY_FAIL = {"hopeless", "once", *STOPPING}


@dataclass(frozen=True)
class RunFact:
    id: int
    outcome: str
    process_id: uuid.UUID | None


@dataclass
class JobFact:
    """A job, its runs in order, and the run ids of the effects it left in each database."""

    id: int
    n: int
    task: str
    state: str
    attempt: int
    max_attempts: int
    cancel_requested: bool
    if_failed: str | None = None
    needs: list[JobFact] = field(default_factory=list["JobFact"])
    """The jobs that it is after, also through batches."""
    runs: list[RunFact] = field(default_factory=list[RunFact])
    effects: list[int] = field(default_factory=list[int])
    echoes: list[int] = field(default_factory=list[int])
    renamed: set[int] = field(default_factory=set[int])
    """Runs that left effects, and whose ids hostile rows have taken: they are stored under other ones."""

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


@dataclass(frozen=True)
class Facts:
    """What the database says at the end."""

    jobs: dict[int, JobFact]
    strays: list[str]
    """Runs and effects of jobs that are not there."""
    process_pids: list[int]


def read_facts(session: Session, second: Session) -> Facts:
    """All of it, from both databases, but for hostile rows; for some 100,000 jobs it fits into memory."""
    job, run = jobs.Job, jobs.Run
    columns = (job.id, job.args["n"].as_integer(), job.task, job.state, job.attempt, job.max_attempts, job.if_failed)
    facts: dict[int, JobFact] = {}
    judged = or_(job.oddity.is_(None), job.oddity.in_(AT_WORK))
    left_out = set(session.scalars(select(job.id).where(~judged)))
    for job_id, n, task, state, attempt, most, if_failed, asked in session.execute(
        select(*columns, job.cancel_requested_at.is_not(None)).where(judged)
    ):
        facts[job_id] = JobFact(job_id, n, task, str(state), attempt, most, asked, if_failed)
    for job_id, needs_id in _needs(session):
        if job_id in facts and needs_id in facts:
            facts[job_id].needs.append(facts[needs_id])
    strays: list[str] = []
    taken: set[int] = set()
    for run_id, job_id, outcome, process_id in session.execute(
        select(run.id, run.job_id, run.outcome, run.process_id).order_by(run.id)
    ):
        if job_id in facts:
            facts[job_id].runs.append(RunFact(run_id, str(outcome), process_id))
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
    return Facts(facts, strays, list(session.scalars(select(jobs.Process.pid))))


def _needs(session: Session) -> list[tuple[int, int]]:
    """Each job that is after another one, with that one."""
    edge, job = jobs.models.tables["edges"].c, jobs.Job
    of_batches = select(edge.job_id, job.id).where(job.batch_id == edge.batch_id)
    rows = session.execute(select(edge.job_id, edge.needs_id).where(edge.needs_id.is_not(None)).union_all(of_batches))
    return [(row[0], row[1]) for row in rows]


def breaches(facts: Facts, ledger: Ledger, services: Collection[Collection[int]]) -> list[str]:
    """Each broken promise in a line that names the job; `services` are the pids of each living service."""
    found = [*facts.strays, *ledger.surprises]
    found += _enqueued(facts, ledger)
    for job in facts.jobs.values():
        found += [f"{said}: {job}" for rule in _RULES for said in rule(job, ledger)]
    found += _follow_ups(facts)
    found += _processes(facts, services)
    return found


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
    """Exactly once for transactional tasks, by the run that succeeded; at least once for plain ones."""
    due = job.succeeded if job.state == "succeeded" else []
    is_exact = len(job.effects) == len(due) if job.renamed else job.effects == due
    if job.task in TRANSACTIONAL and not is_exact:
        yield "not exactly the effect of the run that succeeded"
    if job.task in PLAIN:
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
    """Every attempt leaves a run; a snooze gives its attempt back."""
    charged = sum(run.outcome != "snoozed" for run in job.runs)
    if charged != job.attempt:
        yield f"{job.attempt} attempts and {charged} runs that were charged"


def _outcome(job: JobFact, ledger: Ledger) -> Iterator[str]:
    """The state is that of its last run, and one that the task and its cancels allow."""
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
    if job.task == "poison" and outcomes != ["lost"] * job.max_attempts:
        yield "a job that kills its process was not lost as often as it may be tried"


def _graphs(job: JobFact, ledger: Ledger) -> Iterator[str]:
    """A job begins once all that it is after have ended, and as they should."""
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


_RULES: list[Callable[[JobFact, Ledger], Iterator[str]]] = [_ended, _effects, _attempts, _outcome, _graphs, _cancels]


def _follow_ups(facts: Facts) -> Iterator[str]:
    """Exactly one follow-up job for each effect of the job that enqueues it."""
    follow_ups = Counter(job.n for job in facts.jobs.values() if job.task == "follow")
    for job in facts.jobs.values():
        if job.task in CHAINS and follow_ups.pop(job.n, 0) != len(job.effects):
            yield f"not one follow-up job for each effect: {job}"
    for n in follow_ups:
        yield f"a follow-up job of n={n}, which no job enqueued"


def lost_by_step(facts: Facts, stepped_over: Collection[int]) -> list[str]:
    """A step of the clock costs no run of a living process, but for those that a job stopped in the meantime."""
    lost = [(job, run) for job in facts.jobs.values() for run in job.runs if run.outcome == "lost"]
    stopped = {run.process_id for job, run in lost if job.task in STOPPING}
    return [
        f"run {run.id} was lost when the clock stepped: {job}"
        for job, run in lost
        if run.id in stepped_over and run.process_id not in stopped
    ]


def _processes(facts: Facts, services: Collection[Collection[int]]) -> Iterator[str]:
    """The rows of processes are those of the living."""
    living = {pid for pids in services for pid in pids}
    for pid in facts.process_pids:
        if pid not in living:
            yield f"a row is left of a process, pid {pid}, that is not there"
    for pids in services:
        if not set(pids) & set(facts.process_pids):
            yield f"no row is there of the living processes {sorted(pids)}"
