"""The use of limits over the last hour, and the keys that use them now.

No table stores how much of a limit is used. The figures are computed from the running jobs, the attempts that started
in the hour (or a sample of them), and the recorded starts of rates. The gates of a job name its limits.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, or_, select, true
from sqlalchemy.orm import Session

from sqla_jobs.dashboard.data.sampling import sample_since
from sqla_jobs.dashboard.data.statistics import SPANS
from sqla_jobs.jobs import Jobs
from sqla_jobs.monitoring.finding import ask
from sqla_jobs.monitoring.limits import EACH, rows_of
from sqla_jobs.rules.limits import HASHED_BY, is_hash
from sqla_jobs.rules.redaction import HIDDEN
from sqla_jobs.runtime.figures import LimitStatus

HOUR = SPANS["hour"]
KEYS = 5
"""The maximum number of keys shown for each limit: those that use it most."""
_SAMPLE = 3_000
_RUNNING = 10_000
"""The maximum number of running jobs that are read."""
_STARTS = 10_000
"""The maximum number of `jobs.Start` rows that are read for each rate with keys."""


@dataclass(frozen=True, slots=True)
class KeyUse:
    """One key of a limit, as JSON or as a hash, and its use: its running jobs, or its starts in `per` seconds."""

    key: str
    used: int


@dataclass(slots=True)
class LimitUse:
    """The use of one limit."""

    buckets: list[float] = field(default_factory=lambda: [0.0] * HOUR.buckets)
    """For each bucket of time: the average number of jobs that ran at once or, for a rate, the number of starts."""
    keys: list[KeyUse] = field(default_factory=list[KeyUse])
    others: int = 0
    """The number of other keys in use."""


@dataclass(slots=True)
class LimitUses:
    """The use of all limits, by gate."""

    start: datetime
    """The start of the first bucket."""
    sampled: int | None
    """The number of examined attempts; None if all were examined."""
    of: dict[str, LimitUse]


def read_use(session: Session, jobs: Jobs[Any], limits: Sequence[LimitStatus], now: datetime) -> LimitUses:
    """Read the use of these limits."""
    start = HOUR.first(now)
    sample = sample_since(session, jobs, start, _SAMPLE)
    uses = LimitUses(start, None if sample.is_whole else sample.size, {one.gate: LimitUse() for one in limits})
    if not limits:
        return uses
    by_gate = {one.gate: one for one in limits}
    queues = [one.name for one in limits if one.kind == "queue"]
    running = list(ask(session, jobs, _running(jobs, queues)))
    ended = ask(session, jobs, _ended(jobs, sample, start, queues))
    for weight, rows in ((1, running), (sample.step, ended)):
        for gates, queue, started_at, finished_at in rows:
            for gate in _limiting(gates, queue, by_gate):
                add = _add_start if by_gate[gate].kind == "rate" else _add_time
                add(uses.of[gate].buckets, weight, start, started_at, min(finished_at or now, now))
    _divide(uses, by_gate, start, now)
    counts = _keys_running(running, by_gate)
    for one in limits:
        if one.key == EACH:
            counted = _keys_started(session, jobs, one, by_gate) if one.kind == "rate" else counts[one.gate]
            use = uses.of[one.gate]
            most = sorted(counted.items(), key=lambda item: (-item[1], item[0]))[:KEYS]
            use.keys = [KeyUse(_shown(jobs, one, gate), used) for gate, used in most]
            use.others = len(counted) - len(use.keys)
    return uses


def _running(jobs: Jobs[Any], queues: Sequence[str]) -> Any:
    job: Any = jobs.Job
    columns = (job.gates, job.queue, job.started_at, job.finished_at)
    return select(*columns).where(job.state == "running", _is_limited(job, queues)).limit(_RUNNING)


def _ended(jobs: Jobs[Any], sample: Any, start: datetime, queues: Sequence[str]) -> Any:
    job, run = jobs.Job, jobs.Run
    columns = [run.job_id, run.started_at, run.finished_at]
    source, runs = sample.runs(jobs, columns, run.id >= sample.first, run.started_at >= start)
    # LIMIT makes the planner look up each row by primary key
    of_job = select(job.gates, job.queue).where(job.id == runs.job_id).limit(1).lateral("of_job")
    found = select(of_job.c.gates, of_job.c.queue, runs.started_at, runs.finished_at)
    return found.select_from(source.join(of_job, true())).where(_is_limited(of_job.c, queues))


def _is_limited(job: Any, queues: Sequence[str]) -> Any:
    return or_(job.gates.is_not(None), job.queue.in_(queues))


def _limiting(gates: Sequence[str] | None, queue: str, by_gate: dict[str, LimitStatus]) -> Iterator[str]:
    """Yield the gates in `by_gate` that limit a job with the gates `gates` in this queue."""
    for gate in {*rows_of(gates or ()), f"@{queue}"}:
        if gate in by_gate:
            yield gate


def _add_start(buckets: list[float], weight: int, start: datetime, started_at: datetime, _: datetime) -> None:
    if started_at >= start:
        buckets[min((started_at - start) // HOUR.width, len(buckets) - 1)] += weight


def _add_time(buckets: list[float], weight: int, start: datetime, started_at: datetime, until: datetime) -> None:
    """Add the seconds for which the job ran to each bucket of time."""
    since = max(started_at, start)
    while since < until:
        place = min((since - start) // HOUR.width, len(buckets) - 1)
        end = until if place == len(buckets) - 1 else min(until, start + HOUR.width * (place + 1))
        buckets[place] += weight * (end - since).total_seconds()
        since = end


def _divide(uses: LimitUses, by_gate: dict[str, LimitStatus], start: datetime, now: datetime) -> None:
    """Convert seconds of run time to the average number of jobs at once. The last bucket has not ended yet."""
    last = max((now - start - HOUR.width * (HOUR.buckets - 1)) / timedelta(seconds=1), 1.0)
    for gate, use in uses.of.items():
        if by_gate[gate].kind != "rate":
            lengths = [HOUR.width.total_seconds()] * (HOUR.buckets - 1) + [last]
            use.buckets = [busy / length for busy, length in zip(use.buckets, lengths, strict=True)]


def _keys_running(running: Iterable[Any], by_gate: dict[str, LimitStatus]) -> defaultdict[str, Counter[str]]:
    """For each row that applies to all keys, count the running jobs behind each of its gates."""
    found = defaultdict[str, Counter[str]](Counter)
    for gates, *_ in running:
        for gate in gates or ():
            if gate not in by_gate and "=" in gate:
                found[gate[: gate.index("=") + 1]][gate] += 1
    return found


def _keys_started(
    session: Session, jobs: Jobs[Any], limit: LimitStatus, by_gate: dict[str, LimitStatus]
) -> Counter[str]:
    """For each gate of a rate with keys, count the starts in the last `per` seconds."""
    start: Any = jobs.Start
    of_row = (start.gate > limit.gate, start.gate < f"{limit.gate[:-1]}>")  # ">" is the character after "="
    some = select(start.gate, start.count, start.started_at).where(*of_row).limit(_STARTS).subquery("some")
    since = func.clock_timestamp() - timedelta(seconds=limit.per or 0)
    counted = select(some.c.gate, func.sum(some.c.count)).where(some.c.started_at > since).group_by(some.c.gate)
    return Counter({gate: int(number) for gate, number in ask(session, jobs, counted) if gate not in by_gate})


def _shown(jobs: Jobs[Any], limit: LimitStatus, gate: str) -> str:
    """Return the key in a gate. A plain key that should be hashed was stored by other code, and is hidden."""
    key = gate.removeprefix(limit.gate)
    declared = (one for task in jobs.tasks.values() for one in task.declaration.gates)
    is_secret = (limit.declared or {}).get(HASHED_BY) or any(one.misspells(gate) for one in declared)
    return HIDDEN if is_secret and not is_hash(key) else key
