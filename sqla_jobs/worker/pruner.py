"""Deletes jobs that ended long ago, in a thread of its own, beside the work."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from sqla_jobs.mapping import Models
from sqla_jobs.queries.removal import Reference, Removal
from sqla_jobs.worker.patience import Patience

log = logging.getLogger("sqla_jobs.worker")

_EVERY = 60.0
"""Seconds from one look to the next, in the mean."""
_BATCH = 1000
_PAUSE = 0.1
"""Seconds between two batches, in which others have the server to themselves."""


class Pruner:
    """Deletes, in batches, what is older than its retention: seconds by the state in which it ended.

    Any number of them may work at once: none waits for a row that another has locked.
    """

    def __init__(self, engine: Engine, models: Models[Any], retention: Mapping[str, float]) -> None:
        self._engine = engine
        self._removal = Removal(models)
        self._retention = retention
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="sqla_jobs-pruner", daemon=True)

    def start(self) -> None:
        """Begin, with a look right away."""
        self._thread.start()

    def stop(self) -> None:
        """End, after the batch under way."""
        self._stop.set()
        self._thread.join(1.0)

    def _loop(self) -> None:
        patience = Patience("pruning", self._stop)
        while not self._stop.is_set():
            patience.run(self._look)
            self._stop.wait(_EVERY * random.uniform(0.75, 1.25))  # noqa: S311

    def _look(self) -> None:
        with Session(self._engine) as session:
            references = self._removal.references(session)
        for state, kept in self._retention.items():
            while self._prune(state, kept, references) == _BATCH and not self._stop.wait(_PAUSE):
                pass

    def _prune(self, state: str, kept: float, references: Sequence[Reference]) -> int:
        """One batch; returns how many jobs went."""
        with Session(self._engine) as session:
            try:
                gone = self._removal.remove_ended(session, state, references, older_than=kept, limit=_BATCH)
            except IntegrityError:  # a row began to refer to one of them meanwhile: the next look leaves it out
                return 0
            session.commit()
        if gone:
            log.info("pruned %d %s jobs", gone, state)
        return gone
