"""The child's end of the connection between a worker process and its parent."""

from __future__ import annotations

import logging
import math
import os
import resource
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import psycopg
from sqlalchemy import event

from sqla_jobs.database.engines import IdleConnections
from sqla_jobs.database.subscribers import SCHEDULES, notify_here, subscribe, unsubscribe
from sqla_jobs.execution.shared_memory import Memory, RunSlot, StartedRuns
from sqla_jobs.models.version import identity_of
from sqla_jobs.rules.value_checks import DAY
from sqla_jobs.runtime.retrying import end_pauses
from sqla_jobs.runtime.stopping import StopRequest
from sqla_jobs.supervisor.messages import (
    Address,
    Configured,
    Expecting,
    FoundMore,
    Gone,
    Heard,
    Kill,
    Leaving,
    LookAgain,
    Observed,
    PassOn,
    Recovered,
    Registered,
    Serving,
    Stop,
    TableNames,
    keeps_up,
    session_of,
)
from sqla_jobs.supervisor.options import OF_CHILD, ChildSpec
from sqla_jobs.worker.lookout import JobListener, Listening, Lookout, OwnLookout
from sqla_jobs.worker.services import WorkerServices

log: logging.Logger = logging.getLogger("sqla_jobs.worker")

_LOOK = 0.5
"""Seconds between updates of this process's number of runs and its memory usage."""
_REPORT = 1.0
"""Seconds between reports of the worker's state, if the parent wants them."""
_UNIT = 1 if sys.platform == "darwin" else 1024
"""The unit of getrusage's memory figure, in bytes."""


@dataclass(frozen=True)
class Readings:
    """What the parent may want to know of a worker."""

    runs: Callable[[], int] = lambda: 0
    """Returns the number of runs that have ended in this process."""
    worker: Callable[[], Observed] | None = None
    """Returns the worker's state. None if the parent does not want reports."""


class ParentConnection:
    """The connection to a parent that sends heartbeats, finds work, and can read which runs have begun.

    If the parent dies, the worker stops. The worker's jobs then have half a lease in which to end.
    """

    def __init__(self, pipe: Connection, memory: Memory) -> None:
        self.stop: StopRequest = StopRequest()
        self.readings: Readings = Readings()
        self._pipe = pipe
        self._process = StartedRuns(memory)
        self.host: ChildHost = ChildHost(self, self._process)
        self._spec = Future[ChildSpec]()
        self._sending = threading.Lock()
        threading.Thread(target=self._listen, name="sqla_jobs-parent", daemon=True).start()

    def configured(self, defaults: dict[str, Any], shards: tuple[str, ...]) -> ChildSpec:
        """Send what the application's code says. Return the spec with which the parent replies."""
        self.send(Configured(defaults, shards))
        return self.spec  # if the parent dies instead, so does this process

    @property
    def spec(self) -> ChildSpec:
        """The child's spec, once the parent has replied to `Configured`."""
        return self._spec.result()

    def send(self, message: object) -> None:
        """Send a message to the parent."""
        with self._sending:
            try:
                self._pipe.send(message)
            except OSError:
                self._orphaned()

    def hint(self, message: object) -> None:
        """Send a message to the parent unless sending may block.

        The parent's next poll makes up for an unsent message.
        """
        if keeps_up(self._pipe):
            self.send(message)

    def _listen(self) -> None:
        report_at = 0.0
        while True:
            self._process.alive_at = time.monotonic()
            try:
                message = self._pipe.recv() if self._pipe.poll(_LOOK) else None
            except (EOFError, OSError):
                self._orphaned()
                return
            try:
                if message is not None:
                    self._obey(message)
                memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT
                self._process.vitals = (self.readings.runs(), memory)
                self.host.show_free_slot()
                if self.readings.worker is not None and (now := time.monotonic()) >= report_at:
                    report_at = now + _REPORT
                    self.hint(self.readings.worker())
            except Exception:  # without this thread, the parent would kill the process
                log.exception("%s of the parent process cannot be answered", type(message).__name__)

    def send_last_report(self) -> None:
        """Send a final report after the worker has ended, if the parent wants reports."""
        if self.readings.worker is not None:
            self.send(self.readings.worker())

    def _obey(self, message: ChildSpec | Heard | LookAgain | Gone | Recovered | Stop) -> None:
        match message:
            case ChildSpec():
                self._spec.set_result(message)
            case Heard() | LookAgain() | Gone():
                self.host.obey(message)
            case Recovered():
                end_pauses()
            case Stop():
                self.stop.set()

    def _orphaned(self) -> None:
        if not self._spec.done():
            os._exit(1)
        if not self.stop.is_set():
            log.error("the parent process is gone: this one stops")
            self.stop.grace = self.spec.half_lease
            self.stop.set()


class ChildHost:
    """The host of a child's worker."""

    connections = OF_CHILD - 2

    def __init__(self, parent: ParentConnection, started: StartedRuns) -> None:
        self._parent = parent
        self._started = started
        self.slot: Callable[[], RunSlot] | None = started.take
        self._job_listener: JobListener | None = None
        self._gone: uuid.UUID | None = None
        self._close_idle: list[Callable[[], None]] = []
        self._send_at = 0.0
        self._services: WorkerServices | None = None
        self.address: dict[str, Any] = {}
        """The parameters of the application's address."""

    @property
    def all_connections(self) -> int:
        return self._parent.spec.connections

    @property
    def beat_at(self) -> float:
        return self._started.beat_at

    def may_close(self, close_idle: Callable[[], None]) -> None:
        self._close_idle.append(close_idle)

    def set_listener(self, listener: JobListener | None) -> None:
        """Pass notifications about new jobs to `listener` from now on, or drop them if `listener` is None."""
        self._job_listener = listener

    def show_free_slot(self) -> None:
        """Show the parent whether a slot is waiting for a job."""
        listener = self._job_listener  # another thread may set it to None at any time
        self._started.has_free_slot = listener is not None and listener.has_free_slot

    def meet(self, services: WorkerServices, sessions: int) -> None:
        self._services, engine = services, services.engine
        self.may_close(IdleConnections(engine).close)
        tables = TableNames(services.models.positions.schema, services.models.prefix, services.queries.schema)
        with engine.connect() as connection:
            identity = identity_of(connection, services.models.tables["jobs"])

        def send_address(connection: psycopg.Connection[Any], _: object) -> None:
            info = connection.info
            parameters: dict[str, Any] = info.get_parameters() | ({"password": info.password} if info.password else {})
            if info.host in str(self.address.get("host")).split(","):  # psycopg names the one that it has reached
                parameters |= {name: self.address.get(name) for name in ("host", "hostaddr", "port")}
            self._parent.send(Address(tables, parameters, session_of(connection), sessions, identity))

        event.listen(engine, "connect", send_address)
        with engine.connect() as connection:
            send_address(connection.connection.driver_connection, None)  # type: ignore[arg-type]

    def lookout(self, services: WorkerServices, tasks: Sequence[str]) -> Lookout:
        """Return the lookout of this worker.

        A draining worker looks for work itself, since it ends when nothing is due.
        """
        is_draining = self._parent.spec.drain
        if is_draining:
            return OwnLookout(services, tasks)
        return ForwardedLookout(self._parent, self._started, services, tasks)

    def registered(self, process_id: uuid.UUID) -> None:
        self._started.beat_at = time.monotonic()
        self._parent.send(Registered(process_id))

    @property
    def due_in(self) -> float:
        return math.inf  # the parent sends the heartbeats

    def keep(self, process_id: uuid.UUID) -> bool:
        if self._gone == process_id:
            return False
        now, half_lease = time.monotonic(), self._parent.spec.half_lease
        if now - self.beat_at > half_lease and now >= self._send_at:
            self._send_at = now + half_lease
            self._send_address_anew()
        return True

    def kill_for(self, run_id: int) -> None:
        self._parent.hint(Kill(run_id))

    def rest(self) -> None:
        """Close idle connections except the one for claims: many children may be idle, and connections are scarce."""
        for close in self._close_idle:
            close()

    def leaving(self) -> None:
        self._parent.send(Leaving())

    def _send_address_anew(self) -> None:
        """Send the address again, from a new connection.

        The parent's heartbeats have stopped: the parent's password may have expired.
        """
        assert self._services is not None, "meet() comes first"
        pool = self._services.engine.pool.recreate()
        pool.connect().close()
        pool.dispose()

    def obey(self, message: Heard | LookAgain | Gone) -> None:
        """Do what a message of the parent to this worker says."""
        match message:
            case Heard(queue, is_alone):
                self._hear(queue, is_alone)
            case LookAgain():
                self._tell("", True, lambda listener: listener.look_again())
            case Gone(process_id):
                self._gone = process_id

    def _hear(self, queue: str, is_alone: bool) -> None:
        if queue == SCHEDULES:
            assert self._services is not None, "meet() comes first"
            notify_here(self._services.models.channel, queue)
        else:
            self._tell(queue, is_alone, lambda listener: listener.heard(queue))

    def _tell(self, queue: str, is_alone: bool, tell: Callable[[JobListener], bool]) -> None:
        """Tell the worker of jobs. If only it is told, and does not answer for them, pass the message on."""
        listener = self._job_listener
        if not (listener is not None and tell(listener)) and is_alone:
            self._parent.hint(PassOn(queue))


class ForwardedLookout:
    """A child's lookout, for which the parent listens, polls and promotes.

    The child itself hears only of the jobs that it enqueues.
    """

    promote_at: float = math.inf

    def __init__(self, parent: ParentConnection, started: StartedRuns, services: WorkerServices, tasks: Sequence[str]):
        self._parent = parent
        self._started = started
        self._channel = services.models.channel
        self._longest = 2 * services.settings.poll
        self._tasks = tuple(tasks)
        self._expected_at = math.inf

    @property
    def workers(self) -> int:
        return self._started.workers

    @property
    def has_limits(self) -> bool:
        return self._started.has_limits

    @property
    def has_blocked(self) -> bool:
        """Always False: the parent looks for blocked jobs itself, and sends a message when it finds any."""
        return False

    def promote(self, now: float) -> bool:
        return False

    def expect(self, delay: float) -> bool:
        """Send the delay to the parent, unless the parent's next poll or another expected job comes earlier."""
        now = time.monotonic()
        at = now + delay
        if delay < self._longest and not now < self._expected_at <= at:
            self._expected_at = at
            self._parent.hint(Expecting(delay))
        return False

    def expect_new(self, *, is_busy: bool) -> None:
        """Do nothing: the parent hears of the same jobs."""

    def poll_in(self) -> float:
        return DAY

    def found_more(self, queue: str) -> None:
        self._parent.hint(FoundMore(queue))

    def listener(self, job_listener: JobListener) -> Listening:
        return _ForwardedListener(self._parent, self._channel, self._tasks, job_listener)


class _ForwardedListener:
    """Passes on what the parent hears, and what this process enqueues."""

    def __init__(self, parent: ParentConnection, channel: str, tasks: tuple[str, ...], job_listener: JobListener):
        self._parent = parent
        self._channel = channel
        self._tasks = tasks
        self._job_listener = job_listener

    def start(self) -> None:
        subscribe(self._channel, self._job_listener.heard)
        self._parent.host.set_listener(self._job_listener)
        self._parent.send(Serving(self._tasks))

    def stop(self) -> None:
        unsubscribe(self._channel, self._job_listener.heard)
        self._parent.host.set_listener(None)
        self._parent.hint(PassOn(""))  # this worker has stopped claiming, and may have answered for some jobs
