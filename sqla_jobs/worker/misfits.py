"""Jobs whose stored arguments do not fit this worker's version of the task, because a deploy changed the task."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Mapping
from typing import Any

from pydantic_core import from_json
from sqlalchemy import Engine

from sqla_jobs.errors import JobsError, Undecryptable
from sqla_jobs.execution.attempt import Attempt
from sqla_jobs.execution.transactions import NotBegun
from sqla_jobs.models.mapping import Models
from sqla_jobs.queries import Claimed
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

    def __init__(self, models: Models[Any], takes: Mapping[str, Takes], set_aside: SetAside) -> None:
        """Prepare for the given tasks. `takes` holds, for each task, the parameters that this code accepts."""
        self._models = models
        self._takes = takes
        self._set_aside = set_aside
        self._lock = threading.Lock()
        self._met_at: dict[int, float] = {}
        """When each job was first seen, by job id."""
        self._said_at: dict[str, float] = {}
        self._live: list[Code] = []

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
        if now - met_at >= _FITS_NOWHERE and not is_encrypted and not self._may_run_elsewhere(job):
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

    def look(self, engine: Engine) -> None:
        """Read the tasks of the live workers, if any job does not fit. Call this from one thread only."""
        if self._met_at:
            with engine.begin() as connection:
                self._live = read_codes(connection.execute(live_code(self._models)))

    def _may_run_elsewhere(self, job: Claimed) -> bool:
        try:
            given: list[str] = [*from_json(job.args)]
        except (ValueError, TypeError):
            return False
        mine = self._takes[job.task]
        return any(code.may_run(job.task, job.queue, given, unlike=mine) for code in self._live)
