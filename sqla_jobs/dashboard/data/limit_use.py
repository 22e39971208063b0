"""The keys that use limits now, from the gates of the running jobs and the recorded starts of rates."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqla_jobs.jobs import Jobs
from sqla_jobs.monitoring.finding import ask
from sqla_jobs.monitoring.limits import EACH
from sqla_jobs.queries import Queries
from sqla_jobs.rules.limits import HASHED_BY, is_hash
from sqla_jobs.rules.redaction import HIDDEN
from sqla_jobs.runtime.metrics import LimitStatus

KEYS = 5
"""The maximum number of keys shown for each limit: those that use it most."""
_RUNNING = 10_000
"""The maximum number of running jobs that are read."""


@dataclass(frozen=True, slots=True)
class KeyUse:
    """One key of a limit, as JSON or as a hash, and its use: its running jobs, or its starts that count."""

    key: str
    used: int


@dataclass(frozen=True, slots=True)
class LimitUse:
    """The use of one limit."""

    keys: Sequence[KeyUse]
    others: int
    """The number of other keys in use."""


def read_use(session: Session, jobs: Jobs[Any], limits: Sequence[LimitStatus]) -> dict[str, LimitUse]:
    """Return the use of these limits, by gate."""
    if not limits:
        return {}
    by_gate = {one.gate: one for one in limits}
    job: Any = jobs.Job
    behind = sa.select(job.gates).where(job.state == "running", job.gates.is_not(None)).limit(_RUNNING)
    counts = _keys_running(ask(session, jobs, behind), by_gate)
    uses = dict[str, LimitUse]()
    for one in limits:
        counted = counts[one.gate]
        if one.key == EACH and one.kind == "rate":
            of_keys = Queries(jobs._models).starts_of_keys(session, one.gate)
            counted = Counter({gate: number for gate, number in of_keys.items() if number and gate not in by_gate})
        most = sorted(counted.items(), key=lambda item: (-item[1], item[0]))[:KEYS]
        keys = [KeyUse(_shown(jobs, one, gate), used) for gate, used in most]
        uses[one.gate] = LimitUse(keys, len(counted) - len(keys))
    return uses


def _keys_running(running: Iterable[Any], by_gate: dict[str, LimitStatus]) -> defaultdict[str, Counter[str]]:
    """For each row that applies to all keys, count the running jobs behind each of its gates."""
    found = defaultdict[str, Counter[str]](Counter)
    for (gates,) in running:
        for gate in gates:
            if gate not in by_gate and "=" in gate:
                found[gate[: gate.index("=") + 1]][gate] += 1
    return found


def _shown(jobs: Jobs[Any], limit: LimitStatus, gate: str) -> str:
    """Return the key in a gate. A plain key that should be hashed was stored by other code, and is hidden."""
    key = gate.removeprefix(limit.gate)
    declared = (one for task in jobs.tasks.values() for one in task._declaration.gates)
    is_secret = (limit.declared or {}).get(HASHED_BY) or any(one.misspells(gate) for one in declared)
    return HIDDEN if is_secret and not is_hash(key) else key
