"""The jobs and batches followed in this process, with one thread and one LISTEN for all of them."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack
from functools import partial
from typing import Any

from sqlalchemy import Connection, Engine

from sqla_jobs.actions.batches import count_all
from sqla_jobs.database.engines import close_engine, for_itself, own_engine
from sqla_jobs.database.notify import notify
from sqla_jobs.database.per_engine import PerEngine
from sqla_jobs.database.subscribers import FOLLOWED_FOR, FOLLOWERS, GREETING, followers_of
from sqla_jobs.following.updates import Followed, ReadUpdates, Update
from sqla_jobs.models.mapping import Models
from sqla_jobs.models.version import schema_of
from sqla_jobs.queries.batches import CountBatches
from sqla_jobs.queries.expressions import Tables
from sqla_jobs.runtime.listener import Listener
from sqla_jobs.runtime.retrying import RetryLoop

log: logging.Logger = logging.getLogger("sqla_jobs.following")

APART = 0.05
"""The shortest time between two reads, in seconds. So there are at most twenty a second, for any number of jobs."""
POLL = 5.0
"""Seconds after which all jobs are read even without a message. Plain SQL, rescues and promotions send no messages."""
UNHEARD = 0.5
"""Seconds between two reads while this process is not listening: behind a pooler, or before the server answers."""
_REST = 9
"""The pause after counting batches, in multiples of the time that the count took."""
_IDLE = 5.0
"""Seconds without anything to follow after which the thread ends and the connections are closed."""
_PATIENCE = 10.0
"""Seconds of silence after which the server is considered unavailable."""


class Watch:
    """A followed job or batch. `changed` is called in the hub's thread when there is something new to read."""

    def __init__(self, followed: Followed, changed: Callable[[], None]) -> None:
        self.followed = followed
        self.newest: Update | None = None
        """The state at the last read; `None` before the first."""
        self.is_gone: bool = False
        """True if the job or the batch does not exist, or no longer exists."""
        self._changed = changed

    def see(self, update: Update | None) -> None:
        """Record what a read found. `update` is `None` if it found nothing.

        A job or a batch deleted after its end still counts as ended.
        """
        if update is None:
            if self.newest is not None and self.newest.has_ended:
                return
            self.is_gone = True
        elif update == self.newest:
            return
        else:
            self.newest = update
        self._changed()


class Hub:
    """Reads the watched jobs when a worker notifies the hub that they have changed.

    The messages do not name the jobs' batches. So any message makes the hub count the watched batches. Counting takes
    at most a tenth of the time, even if the batches are large.

    Workers send messages about changed jobs only while some process follows jobs. So the hub announces itself when it
    starts listening, and then periodically. A worker answers the first announcement that it receives. The hub then
    reads all jobs, and thus sees jobs that ended before the worker knew of the hub. A starting worker asks for an
    announcement.
    """

    def __init__(self, models: Models[Any]) -> None:
        self._models = models
        self._lock = threading.Lock()
        self._watches: dict[Followed, set[Watch]] = {}
        self._to_read = set[Followed]()
        self._count_at = 0.0
        """Before this time, no batches are counted."""
        self._read_all = False
        self._announce_at = 0.0
        self._is_heard = False
        self._empty_since = 0.0
        self._wake = threading.Event()
        self._never = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, app: Engine, watch: Watch) -> None:
        """Start watching a job or a batch in the database of `app`."""
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._loop, args=(app,), name="sqla_jobs-following", daemon=True)
                thread.start()  # first: if the thread cannot start, nothing is left behind
                self._thread = thread
            self._watches.setdefault(watch.followed, set()).add(watch)
            self._to_read.add(watch.followed)
        self._wake.set()

    def remove(self, watch: Watch) -> None:
        """Stop watching. A forked child has its own hub, which does not know its parent's watches."""
        with self._lock:
            watches = self._watches.get(watch.followed, set())
            watches.discard(watch)
            if not watches:
                self._watches.pop(watch.followed, None)
            self._empty_since = time.monotonic()
        self._wake.set()  # the loop must recompute its wait

    def _heard(self, message: str) -> None:
        """Record the ids of changed jobs.

        A message without ids means that any job may have changed. The first message comes from the listener.
        """
        with self._lock:
            if message == GREETING or not self._is_heard:
                self._is_heard, self._announce_at = True, 0.0
            if message.replace(",", "").isdecimal():
                named = {Followed("job", int(job_id)) for job_id in message.split(",")}
                self._to_read |= {one for one in self._watches if one in named or one.noun == "batch"}
                if not self._to_read:
                    return
            elif message != GREETING:
                self._read_all = True
        self._wake.set()

    def _loop(self, app: Engine) -> None:
        retry = RetryLoop("following jobs", self._never, longest=2.0)
        while not self._may_end():
            retry.run(partial(self._serve_if_wanted, app))

    def _serve_if_wanted(self, app: Engine) -> None:
        try:
            self._serve(app)
        except Exception:
            if self._watches:  # otherwise nobody is waiting for the server to come back
                raise

    def _serve(self, app: Engine) -> None:
        self._is_heard = False
        engine = own_engine(app, patience=_PATIENCE, most=2, name="sqla-jobs following")
        channel = followers_of(self._models.channel)
        connect = partial(for_itself, engine)
        listener = Listener(
            *(connect, channel, self._heard),
            what="changes of followed jobs",
            is_wanted=lambda: bool(self._watches),
            patience=_PATIENCE,
        )
        with ExitStack() as closing:
            closing.callback(close_engine, engine)
            with engine.begin() as connection:
                schema = schema_of(connection, self._models.tables["jobs"])
            listener.start()
            closing.callback(listener.stop)
            tables = Tables(self._models, schema)
            self._look_until_idle(engine, listener, ReadUpdates(tables), CountBatches(tables))

    def _look_until_idle(self, engine: Engine, listener: Listener, read: ReadUpdates, count: CountBatches) -> None:
        poll_at = 0.0
        while time.monotonic() < self._idle_at and not listener.has_ended:
            watches, are_all = self._taken(is_poll=time.monotonic() >= poll_at)
            if watches or time.monotonic() >= self._next_announcement:
                with engine.begin() as connection:
                    self._announce_if_due(connection)
                    found = self._read(connection, read, count, {watch.followed for watch in watches})
                for watch in watches:
                    watch.see(found.get(watch.followed))
                time.sleep(APART)
            now = time.monotonic()
            if are_all:  # only then: others that change often put no poll off
                poll_at = now + (POLL if self._is_heard else UNHEARD)
            self._wake.wait(max(0.0, min(poll_at, self._next_announcement, self._idle_at, self._next_count) - now))
            self._wake.clear()

    def _read(
        self, connection: Connection, read: ReadUpdates, count: CountBatches, wanted: Collection[Followed]
    ) -> dict[Followed, Update]:
        found: dict[Followed, Update] = {}
        if job_ids := {one.id for one in wanted if one.noun == "job"}:
            found.update((Followed("job", job_id), update) for job_id, update in read(connection, job_ids).items())
        if batch_ids := {one.id for one in wanted if one.noun == "batch"}:
            began = time.monotonic()
            counts = count_all(count, connection, batch_ids)
            found.update((Followed("batch", batch_id), counts) for batch_id, counts in counts.items())
            now = time.monotonic()
            self._count_at = now + _REST * (now - began)
        return found

    @property
    def _next_count(self) -> float:
        """When to count the batches that wait to be counted. Infinite if no batch is waiting."""
        with self._lock:
            return self._count_at if any(one.noun == "batch" for one in self._to_read) else math.inf

    @property
    def _next_announcement(self) -> float:
        return self._announce_at if self._is_heard else math.inf

    @property
    def _idle_at(self) -> float:
        """When to end the thread and close the connections. Infinite while a job or a batch is watched."""
        with self._lock:
            return math.inf if self._watches else self._empty_since + _IDLE

    def _announce_if_due(self, connection: Connection) -> None:
        if time.monotonic() >= self._next_announcement:
            self._announce_at = time.monotonic() + FOLLOWED_FOR / 3
            notify(connection, self._models.channel, [FOLLOWERS])

    def _taken(self, *, is_poll: bool) -> tuple[list[Watch], bool]:
        """Return the watches to read now, and whether that is because all are to be read.

        A watch added later never gets an answer that is older than the watch.
        """
        with self._lock:
            are_all = self._read_all or is_poll
            wanted = {*self._watches} if are_all else self._to_read & self._watches.keys()
            later = {one for one in wanted if one.noun == "batch"} if time.monotonic() < self._count_at else set[Any]()
            watches = [watch for one in wanted - later for watch in self._watches[one]]
            self._read_all, self._to_read = False, later
        return watches, are_all

    def _may_end(self) -> bool:
        with self._lock:
            if self._watches:
                return False
            self._thread = None
            return True


_hubs: PerEngine[dict[type[Any], Hub]] = PerEngine(dict)


def hub_of(app: Engine, models: Models[Any]) -> Hub:
    """Return this process's hub for a database."""
    hubs = _hubs.of(app)
    return hubs.get(models.Job) or hubs.setdefault(models.Job, Hub(models))
