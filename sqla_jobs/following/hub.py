"""The jobs and batches followed in this process, which one thread reads on one connection."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import sqlalchemy as sa

from sqla_jobs.actions.batches import count_all
from sqla_jobs.database.engines import close_engine, own_engine
from sqla_jobs.database.per_engine import PerEngine
from sqla_jobs.following.updates import Followed, ReadUpdates, Update
from sqla_jobs.models.mapping import Models
from sqla_jobs.models.version import schema_of
from sqla_jobs.queries.batches import CountBatches
from sqla_jobs.queries.expressions import Tables
from sqla_jobs.runtime.retrying import RetryLoop

APART, LONGEST = 0.02, 0.25
"""The pause after a read that found changes, and the longest, in seconds. Each read without changes doubles it."""
_EACH = 3e-5
"""Seconds by which each follower prolongs the pause, so that a thousand cost at most twenty reads a second."""
_REST = 9
"""The pause after counting batches, in multiples of the time that the count took."""
_IDLE = 5.0
"""Seconds without anything to follow after which the thread ends and the connection is closed."""
_PATIENCE = 10.0
"""Seconds of silence after which the server is considered unavailable."""


Read = Callable[[sa.Connection, Collection[int]], Mapping[int, Update]]
"""Reads some jobs or batches, by id."""


@dataclass(frozen=True)
class Seen:
    """What is known of a followed job or batch."""

    newest: Update | None = None
    """The state at the last read; `None` before the first."""
    is_gone: bool = False
    """True if the job or the batch does not exist, or no longer exists."""
    error: Exception | None = None
    """The error of the last read; `None` if it succeeded."""


class Watch:
    """A followed job or batch. `changed` is called in the hub's thread when there is something new to read."""

    def __init__(self, followed: Followed, changed: Callable[[], None]) -> None:
        self.followed = followed
        self.seen: Seen = Seen()
        """What the reads have found. Each read replaces it."""
        self._changed = changed

    def see(self, update: Update | None) -> bool:
        """Record what a read found, and return whether it is new. `update` is `None` if the read found nothing.

        A job or a batch deleted after its end still counts as ended.
        """
        before = self.seen
        has_ended = before.newest is not None and before.newest.has_ended
        newest = before.newest if update is None else update
        self.seen = Seen(newest, is_gone=before.is_gone or (update is None and not has_ended))
        is_new = newest != before.newest or self.seen.is_gone is not before.is_gone
        if is_new:
            self._changed()
        return is_new

    def fail(self, error: Exception) -> None:
        """Record that a read failed."""
        self.seen = replace(self.seen, error=error)
        self._changed()


class Hub:
    """Reads all watched jobs and batches again and again, while there are any.

    Counting batches takes at most a tenth of the time, even if the batches are large.
    """

    def __init__(self, models: Models[Any]) -> None:
        self._models = models
        self._lock = threading.Lock()
        self._watches = set[Watch]()
        self._added = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, app: sa.Engine, watch: Watch) -> None:
        """Start watching a job or a batch in the database of `app`."""
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._loop, args=(app,), name="sqla_jobs-following", daemon=True)
                thread.start()  # first: if the thread cannot start, nothing is left behind
                self._thread = thread
            self._watches.add(watch)
        self._added.set()

    def remove(self, watch: Watch) -> None:
        """Stop watching. A forked child has its own hub, which does not know its parent's watches."""
        with self._lock:
            self._watches.discard(watch)

    def _loop(self, app: sa.Engine) -> None:
        while not self._may_end():
            nobody = threading.Event()
            with suppress(Exception):  # nobody is waiting for the server to come back
                RetryLoop("following jobs", nobody, longest=1.0).call(partial(self._serve_while_wanted, app, nobody))

    def _may_end(self) -> bool:
        with self._lock:
            if self._watches:
                return False
            self._thread = None
            return True

    def _serve_while_wanted(self, app: sa.Engine, nobody: threading.Event) -> None:
        """Read until there is nothing to follow. After an error, set `nobody` if nobody follows anything."""
        try:
            self._serve(app)
        except Exception as error:
            with self._lock:
                watches = list(self._watches)
            for watch in watches:
                watch.fail(error)
            if not watches:
                nobody.set()
            raise

    def _serve(self, app: sa.Engine) -> None:
        engine = own_engine(app, patience=_PATIENCE, most=1, name="sqla-jobs following")
        try:
            with engine.begin() as connection:
                tables = Tables(self._models, schema_of(connection, self._models.tables["jobs"]))
            self._read_until_idle(engine, ReadUpdates(tables), CountBatches(tables))
        finally:
            close_engine(engine)

    def _read_until_idle(self, engine: sa.Engine, read: ReadUpdates, count: CountBatches) -> None:
        pause = count_at = 0.0
        idle_at = time.monotonic() + _IDLE
        while (now := time.monotonic()) < idle_at:
            self._added.clear()
            with self._lock:
                watches = list(self._watches)
            if not watches:
                self._added.wait(idle_at - now)
                continue
            jobs = [one for one in watches if one.followed.noun == "job"]
            is_news = bool(jobs) and _read(engine, read, jobs)
            if now >= count_at and (batches := [one for one in watches if one.followed.noun == "batch"]):
                began = time.monotonic()
                is_news |= _read(engine, partial(count_all, count), batches)
                count_at = began + (1 + _REST) * (time.monotonic() - began)
            idle_at = time.monotonic() + _IDLE
            shortest = min(APART + _EACH * len(watches), LONGEST)
            pause = shortest if is_news else min(max(shortest, 2 * pause), LONGEST)
            time.sleep(shortest)
            self._added.wait(pause - shortest)


def _read(engine: sa.Engine, read: Read, watches: Collection[Watch]) -> bool:
    """Read the watches' jobs or batches, and return whether there is anything new."""
    with engine.begin() as connection:
        found = read(connection, {one.followed.id for one in watches})
    news = [one for one in watches if one.see(found.get(one.followed.id))]
    return bool(news)


_hubs: PerEngine[dict[type[Any], Hub]] = PerEngine(dict)


def hub_of(app: sa.Engine, models: Models[Any]) -> Hub:
    """Return this process's hub for a database."""
    hubs = _hubs.of(app)
    return hubs.get(models.Job) or hubs.setdefault(models.Job, Hub(models))
