"""The parent of worker processes, which starts, watches and replaces them. The parent imports no application code."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from multiprocessing.connection import wait
from types import FrameType
from typing import Any

from sqla_jobs.database.shard_name import working_in
from sqla_jobs.database.subscribers import subscribe
from sqla_jobs.runtime.counters import Counters
from sqla_jobs.runtime.retrying import RECOVERED, end_pauses
from sqla_jobs.runtime.stopping import StopRequest, handled, stopped_by_signals
from sqla_jobs.supervisor.child import ChildProcess
from sqla_jobs.supervisor.child_worker import ChildWorker
from sqla_jobs.supervisor.database_work import DatabaseWork
from sqla_jobs.supervisor.messages import (
    Address,
    Configured,
    Drained,
    Expecting,
    FiguresRead,
    FoundMore,
    Heard,
    Kill,
    Leaving,
    MetricsRead,
    Observed,
    Of,
    OfWorker,
    PassOn,
    Recovered,
    Registered,
    Serving,
    ToParent,
)
from sqla_jobs.supervisor.oversight import ask_for_stacks, oversee
from sqla_jobs.supervisor.report import Report
from sqla_jobs.supervisor.roster import Roster, Slot
from sqla_jobs.supervisor.spec import Application, ChildSpec, Setup, SupervisorOptions

log: logging.Logger = logging.getLogger("sqla_jobs.worker")

_LOOK = 0.1
"""Seconds between looks at the children."""
_MARGIN = 20.0
"""After the grace period, a child may spend this many seconds storing the ends of its runs. Then it is killed."""

Plan = Callable[[dict[str, dict[str, Any]]], tuple[ChildSpec, SupervisorOptions]]
"""Makes the children's spec and the parent's options from the options in an application's config."""


class Supervisor:
    """Runs `application` in as many child processes as `plan` specifies.

    The first child sends the application's config, and `plan` is called with it. Until then, the `options` from the
    command line apply.

    SIGTERM and SIGINT stop all children gracefully; a second signal stops them immediately. SIGHUP replaces all
    children one by one with new processes, which import the application anew. SIGUSR1 makes each child log the stacks
    of its jobs.
    """

    def __init__(self, application: Application, plan: Plan, options: SupervisorOptions) -> None:
        self._plan = plan
        self._setup = Setup(application, options)
        self._children = Roster()
        self._counters = Counters()
        self._databases: dict[str, DatabaseWork] = {}
        """The parent's work in each database whose address a child has sent, by the database's name."""
        self.report: Report = Report(self._children, self._counters, lambda: self._setup)
        """The state of the parent and its children, for any thread."""
        self._replace_before = 0.0
        """Children that started before this time are being replaced on request; 0 once all are replaced."""
        self._has_worked = False
        self._signals: set[int] = set()
        self._stop_requested = StopRequest()
        subscribe(RECOVERED, self._tell_of_recovery)
        self.runs: int = 0
        """The number of runs by children that have drained their queues."""

    def run(self, *, hangup: Callable[[int, FrameType | None], None] | None = None) -> int:
        """Supervise until stopped, or until all queues are drained. Return the exit code.

        If `hangup` is given, it handles SIGHUP, and the children are not replaced: the terminal may have been closed.
        """
        with (
            stopped_by_signals(self._stop_requested, before_exit=self._kill_all),
            handled({signal.SIGHUP: hangup or self._on_signal, signal.SIGUSR1: self._on_signal}),
        ):
            while not self._is_over():
                self._obey_signals()
                self._start_missing()
                for name, work in self._databases.items():
                    working_in(name, work.start)
                self._listen()
                self._take_leave()
                is_any_newly_hung = oversee(self._children, self._setup.options, self.report.turned())
                if is_any_newly_hung:  # the hung child may have been the only one that was told of some jobs
                    for work in self._databases.values():
                        work.tell_all()
                self._replace()
        for work in self._databases.values():
            work.close()
        return int(self._stop_requested.is_set() and not self._stop_requested.is_signalled)  # the first child failed

    def replace_all(self) -> None:
        """Replace all children, one by one. Any thread or signal handler may call this."""
        self._signals.add(signal.SIGHUP)

    def _tell_of_recovery(self, _: str) -> None:
        for child in self._children:
            child.hint(Recovered())

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals.add(number)

    def _kill_all(self) -> None:
        for child in self._children:
            child.process.kill()

    def _obey_signals(self) -> None:
        wanted = self._signals.copy()  # in two steps, and always the same set: another thread may be about to add to it
        self._signals.difference_update(wanted)
        if self._stop_requested.is_set():
            for child in self._children:
                if not child.is_leaving:
                    child.ask_to_stop(self._stop_within)
        if signal.SIGHUP in wanted:
            self._replace_before = time.monotonic()
            log.info("replacing all processes, one by one")
            for slot in self._children.slots:
                slot.start_at = 0.0
        if signal.SIGUSR1 in wanted:
            for child in self._children:
                ask_for_stacks(child)

    def _is_over(self) -> bool:
        return not any(self._children) and (self._stop_requested.is_set() or not self._children.slots)

    def _start_missing(self) -> None:
        """Start children in vacant slots.

        Start only one child until one has registered, so that an error is logged only once.
        """
        if self._stop_requested.is_set():
            return
        for slot in self._children.slots if self._has_worked else self._children.slots[:1]:
            if slot.is_vacant:
                slot.child = self._started(slot)

    def _started(self, slot: Slot) -> ChildProcess | None:
        """Start a child. If the system refuses that, log a warning, and let the slot wait before the next try."""
        try:
            return ChildProcess(self._setup.application, slot.number)
        except OSError as error:
            log.warning("no process can be started, and the next try is in %.1f s: %s", slot.hold_back(None), error)
            return None

    def _listen(self) -> None:
        pipes = {child.pipe: child for child in self._children if not child.pipe.closed}
        if not pipes:
            time.sleep(_LOOK)
        try:
            ready = wait(list(pipes), _LOOK)
        except (OSError, ValueError):  # another thread closed a pipe after an error
            return
        for pipe in ready:
            child = pipes[pipe]
            for message in child.messages():
                self._hear(child, message)

    def _decided(self, defaults: dict[str, dict[str, Any]]) -> ChildSpec:
        """Return the children's spec, made from the config that the first child has sent."""
        if self._setup.planned is None:
            try:
                spec, options = self._plan(defaults)
            except Exception:
                self._kill_all()
                for child in self._children:
                    child.process.wait()
                raise
            self._setup = Setup(replace(self._setup.application, logs=spec.logs), options, spec)
            self._children.make_room(options.processes)
            self._counters.is_wanted = spec.is_observed
        return self._setup.spec

    @property
    def _stop_within(self) -> float:
        return self._setup.grace + _MARGIN

    def _hear(self, child: ChildProcess, message: ToParent) -> None:
        match message:
            case Configured(defaults):
                child.send(self._decided(defaults).of_number(child.number))
            case Of(shard, of_worker):
                self._hear_worker(child.worker(shard), of_worker)
            case Drained(runs):
                self.runs += runs
                self._children.finished(child)
                child.must_end(self._stop_within)
            case Recovered():
                end_pauses()
            case Observed() | FiguresRead() | MetricsRead():
                self.report.hear(child, message)

    def _hear_worker(self, worker: ChildWorker, message: OfWorker) -> None:
        name = worker.shard.name
        match message:
            case Address():
                if name not in self._databases:
                    work = partial(DatabaseWork, name, message, self._setup, self._children, self._counters)
                    self._databases[name] = working_in(name, work)
                self._databases[name].database.address = message
            case Serving(tasks):
                working_in(name, partial(self._databases[name].serve, tasks))
                worker.hint(Heard(""))  # jobs may have come after its first look but before `serve`
            case Expecting() | FoundMore() | PassOn():
                if (lookout := self._databases[name].lookout) is not None:
                    lookout.hear(message, worker)  # otherwise the child sends `Serving` next, and is told to look
            case Kill(run_id):
                worker.condemn(run_id)
            case Registered():
                self._has_worked = True
                if (old := self._children.take_over(worker.child)) is not None:
                    old.ask_to_stop(self._stop_within)
            case Leaving():
                worker.process_id, worker.has_left = None, True
                worker.child.must_end(self._stop_within)

    def _take_leave(self) -> None:
        for child in list(self._children):
            if child.is_alive:
                if time.monotonic() > child.kill_at:
                    child.kill("it did not end in time")
                continue
            for message in child.messages():
                self._hear(child, message)
            for name, worker in child.workers.items():
                if (abandoned := worker.abandoned()) is not None:  # it has sent its address before it registered
                    self._databases[name].heartbeat.settle(abandoned)
            self.report.take_over(child)
            self._vacate(child)

    def _vacate(self, child: ChildProcess) -> None:
        if (slot := self._children.vacated(child)) is None:
            return
        if slot.successor is child:
            slot.successor = None
            self._replace_before = 0.0
            slot.hold_back(child)
            log.error("a new process %s before it was ready: the old ones continue", child.how_it_ended())
            return
        slot.succeed()
        if not self._stop_requested.is_set():
            self._plan_restart(slot, child)

    def _plan_restart(self, slot: Slot, child: ChildProcess) -> None:
        if not self._has_worked and self._setup.options.reload:
            slot.start_at = math.inf  # until a file changes
            return
        if not self._has_worked:
            if (child.process.returncode or 0) < 0:  # otherwise the child has logged the reason
                log.error("process %d %s before it was ready", child.pid, child.how_it_ended())
            self._stop_requested.set()
            return
        if self._setup.spec.drain and child.process.returncode == 1:  # it has logged what it cannot drain
            self._stop_requested.set()
            return
        if self._setup.spec.drain and child.has_left:  # it could not send `Drained`, but has stored all ends
            self.runs += child.started.vitals[0]
            self._children.slots.remove(slot)
            return
        if child.process.returncode == 0 and child.ready_at is not None:
            slot.start_at = 0.0
            return
        seconds = slot.hold_back(child)
        log.error("process %d %s; a new one starts in %.1f s", child.pid, child.how_it_ended(), seconds)

    def _replace(self) -> None:
        """Start a successor of the oldest child that is to be replaced, or has reached its limits."""
        if self._stop_requested.is_set() or self._children.is_changing:
            return
        old: dict[float, Slot] = {}
        for slot in self._children.slots:
            if (child := slot.child) is None or time.monotonic() < slot.start_at:
                continue
            if child.started_at < self._replace_before or self._setup.options.is_spent(*child.started.vitals):
                old[child.started_at] = slot
        if old:
            slot = old[min(old)]
            slot.successor = self._started(slot)
        elif self._replace_before and all(child.is_registered for child in self._children):
            self._replace_before = 0.0
            for name in self._databases.keys() - {name for child in self._children for name in child.workers}:
                self._databases.pop(name).close()  # the application serves it no more
            log.info("all processes are replaced")
