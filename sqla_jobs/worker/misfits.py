"""Jobs whose stored arguments do not fit this worker's version of the task, because a deploy changed the task."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Mapping
from typing import Any

from pydantic_core import from_json
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.util import await_only

from sqla_jobs.errors import JobsError, Undecryptable
from sqla_jobs.execution.attempt import Attempt
from sqla_jobs.execution.step_store import Connections
from sqla_jobs.execution.transactions import NotBegun
from sqla_jobs.models.mapping import Models
from sqla_jobs.queries.processes import live_code
from sqla_jobs.rules.fitting import MOST_PASSED_OVER, UNFIT, Code, Takes, read_codes
from sqla_jobs.runtime.set_aside import SetAside

log: logging.Logger = logging.getLogger("sqla_jobs.worker")

_FITS_NOWHERE = 60.0
"""A job that fits no live worker fails an attempt after this many seconds.

Two warnings about one task are at least this far apart, too.
"""
_LATER = (30.0, 60.0)
"""Bounds, in seconds, of the random delay for jobs beyond `MOST_PASSED_OVER`."""
_REMEMBERED = 10_000


class Misfits:
    """Gives back jobs whose arguments do not fit, so that workers with other code run them.

    This does not use an attempt. All threads that run jobs share one object.
    """

    def __init__(
        self, models: Models[Any], takes: Mapping[str, Takes], set_aside: SetAside, connections: Connections
    ) -> None:
        """Prepare for the given tasks. `takes` holds, for each task, the parameters that this code accepts."""
        self._models = models
        self._connections = connections
        self._takes = takes
        self._set_aside = set_aside
        self._lock = threading.Lock()
        self._met_at: dict[int, float] = {}
        """When each job was first seen, by job id."""
        self._said_at: dict[str, float] = {}

    def meet(self, attempt: Attempt, error: JobsError) -> None:
        """Raise `NotBegun`, unless the job was first seen at least a minute ago and no live worker can run it.

        A job that needs a key which this process lacks waits for the key as long as it takes.
        """
        is_encrypted = isinstance(error, Undecryptable)
        job, now = attempt.job, time.monotonic()
        with self._lock:
            met_at = self._met_at.setdefault(job.job_id, now)
            if len(self._met_at) > _REMEMBERED:
                del self._met_at[next(iter(self._met_at))]
            is_new = now >= self._said_at.get(job.task, now)
            self._said_at[job.task] = now + _FITS_NOWHERE if is_new else self._said_at[job.task]
        if now - met_at >= _FITS_NOWHERE and not is_encrypted and not self._may_run_elsewhere(attempt):
            return
        why = f"{'its arguments cannot be read' if is_encrypted else UNFIT}: {error}"[:1000]
        log.log(
            logging.WARNING if is_new else logging.DEBUG,
            "job %s %s is left to workers with other %s, since %s",
            job.job_id,
            job.task,
            "keys" if is_encrypted else "code",
            why,
        )
        is_passed_over = self._set_aside.pass_over(job.job_id, why, most=MOST_PASSED_OVER)
        raise NotBegun(why, None if is_passed_over else random.SystemRandom().uniform(*_LATER))

    def _may_run_elsewhere(self, attempt: Attempt) -> bool:
        """Return whether a live worker may be able to run the job. Return True if the server does not say."""
        job = attempt.job
        try:
            given: list[str] = [*from_json(job.args)]
        except (ValueError, TypeError):
            return False
        is_awaited = attempt.declaration is not None and attempt.declaration.signature.is_coroutine
        try:
            live: list[Code] = await_only(self._connections.spawn(self._live)) if is_awaited else self._live()
        except SQLAlchemyError:  # including a pool that has no connection in time
            return True
        mine = self._takes[job.task]
        return any(code.may_run(job.task, job.queue, given, unlike=mine) for code in live)

    def _live(self) -> list[Code]:
        with self._connections.once() as connection:
            return read_codes(connection.execute(live_code(self._models)))
