"""What the parts of one worker share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from sqla_jobs.models.mapping import Models
from sqla_jobs.queries import Queries
from sqla_jobs.runtime.set_aside import SetAside
from sqla_jobs.runtime.settings import Settings

if TYPE_CHECKING:
    from sqla_jobs.worker.attempts import Attempts
    from sqla_jobs.worker.backlog import Backlog
    from sqla_jobs.worker.finisher import Finisher
    from sqla_jobs.worker.heartbeat_loop import Liveness
    from sqla_jobs.worker.lookout import Lookout
    from sqla_jobs.worker.resolver import JobResolver


@dataclass
class WorkerServices:
    """What the parts of one worker share. The worker adds the last four, which need the others, as it builds them."""

    engine: sa.Engine
    claims: sa.Engine
    """The engine for claims and promotions only."""
    models: Models[Any]
    queries: Queries
    settings: Settings
    attempts: Attempts
    backlogs: list[Backlog]
    set_aside: SetAside = field(default_factory=SetAside)
    liveness: Liveness = field(init=False)
    finisher: Finisher = field(init=False)
    lookout: Lookout = field(init=False)
    resolver: JobResolver = field(init=False)
