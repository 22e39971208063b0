"""The parts of a worker that the plain claimer and the limited claimer share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqla_jobs.worker.attempts import Shared
from sqla_jobs.worker.backlog import Backlog
from sqla_jobs.worker.finisher import Finisher
from sqla_jobs.worker.liveness import Liveness
from sqla_jobs.worker.lookout import Lookout
from sqla_jobs.worker.resolver import JobResolver


@dataclass(frozen=True)
class Claiming:
    """The parts of a worker that both claimers use."""

    shared: Shared
    backlogs: Sequence[Backlog]
    liveness: Liveness
    finisher: Finisher
    lookout: Lookout
    resolver: JobResolver
