"""The parent of worker processes: starts them, keeps them alive, replaces them. It imports no application code."""

from __future__ import annotations

import logging
import math
import signal
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import wait
from types import FrameType
from typing import Any

from sqla_jobs.runtime.set_aside import SetAside
from sqla_jobs.runtime.settings import Settings
from sqla_jobs.runtime.stopping import StopRequest, handled, stopped_by_signals
from sqla_jobs.supervisor.child import ChildProcess
from sqla_jobs.supervisor.database import Told
from sqla_jobs.supervisor.heartbeat import ParentHeartbeat
from sqla_jobs.supervisor.lookout import ParentLookout
from sqla_jobs.supervisor.messages import (
    Address,
    Configured,
    Drained,
    Expecting,
    FoundMore,
    Gone,
    Kill,
    PassedOn,
    Registered,
    Serving,
    Statements,
)
from sqla_jobs.supervisor.options import SupervisorOptions
from sqla_jobs.supervisor.slot import Slot
from sqla_jobs.supervisor.spec import Application, ChildSpec

log = logging.getLogger("sqla_jobs.worker")

_LOOK = 0.1
"""Seconds between two looks at the children."""
_ABSENT = 1.0
"""Seconds between two looks after which the parent itself was held up, and cannot judge its children."""
_NO_ANSWER = 2.0
"""Seconds without a sign of life after which a child is not expected to answer a signal."""
_MARGIN = 20.0
"""Seconds beyond its grace that a child has for storing what it did, before it is killed."""
_SETTLE = 5.0
"""Seconds for recording what killed children held, when all ends."""


Plan = Callable[[dict[str, dict[str, Any]]], tuple[ChildSpec, SupervisorOptions]]
"""What to do, given what an application's config says about options."""


class Supervisor:
    """Runs `application` in as many children as `plan` says, once the first one has told of the config.

    Until then `options` go, as the command line says them.

    SIGTERM and SIGINT stop all of them gracefully, a second one at once; SIGHUP replaces them one by one
    by new ones, which import the application anew; SIGUSR1 makes each log where its jobs are.
    """

    def __init__(self, application: Application, plan: Plan, options: SupervisorOptions) -> None:
        self._application = application
        self._plan = plan
        self._spec: ChildSpec | None = None
        self._options = options
        self._slots = [Slot(1)]
        self._leaving: list[ChildProcess] = []
        self._to_replace: deque[Slot] = deque()
        set_aside = SetAside()
        self._told = Told()
        self._parent_heartbeat = ParentHeartbeat(
            self._told,
            set_aside,
            living=self._living,
            gone=self._gone,
            beaten=self._beaten,
            hung=self._hung,
        )
        self._lookout = ParentLookout(self._told, set_aside, children=self._claiming)
        self._is_replacing = False
        """Whether somebody asked for that, and is to be told of the end."""
        self._has_worked = False
        self._looked_at = time.monotonic()
        self._signals: set[int] = set()
        self._stop_requested = StopRequest()
        self._stop_within = _MARGIN
        self._exit_code = 0
        self.runs = 0
        """How many runs the children have told of when they ended."""

    def run(self) -> int:
        """Supervise until stopped, or until all is drained. Returns the exit code."""
        with (
            stopped_by_signals(self._stop_requested, before_exit=self._kill_all),
            handled(dict.fromkeys((signal.SIGHUP, signal.SIGUSR1), self._on_signal)),
        ):
            while not self._is_over():
                self._obey_signals()
                self._start_missing()
                self._listen()
                self._take_leave()
                self._notice_absence()
                self._kill_overdue()
                self._look_for_hung()
                self._replace()
        self._lookout.stop()
        if not self._parent_heartbeat.close(_SETTLE):
            log.warning("what killed processes held could not be recorded; it is taken back when the lease ends")
        return self._exit_code

    def replace_all(self) -> None:
        """Have every child replaced, one by one, soon; may be called from any thread or signal handler."""
        self._signals.add(signal.SIGHUP)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals.add(number)

    def _kill_all(self) -> None:
        for child in self._children():
            child.process.kill()

    def _obey_signals(self) -> None:
        wanted, self._signals = self._signals, set()
        if self._stop_requested.is_set():
            self._stop()
        if signal.SIGHUP in wanted:
            self._is_replacing = True
            log.info("replacing all processes, one by one")
            self._to_replace = deque(slot for slot in self._slots if slot.child)
            for slot in self._slots:
                slot.start_at = 0.0
        if signal.SIGUSR1 in wanted:
            for child in self._children():
                self._ask_for_stacks(child)

    def _ask_for_stacks(self, child: ChildProcess) -> None:
        child.show_stacks()
        if child.started.alive_at and child.silence > _NO_ANSWER:
            log.warning(
                "process %d cannot tell where its jobs are: nothing of it has run for %.0f s. It holds %s. "
                "`py-spy dump --native --pid %d` tells",
                child.pid,
                child.silence,
                child.work,
                child.pid,
            )

    def _stop(self) -> None:
        self._to_replace.clear()
        for child in self._children():
            if not child.is_leaving:
                child.ask_to_stop(self._stop_within)

    def _children(self) -> Iterator[ChildProcess]:
        for slot in self._slots:
            yield from slot.children
        yield from list(self._leaving)

    def _is_over(self) -> bool:
        if any(self._children()):
            return False
        return self._stop_requested.is_set() or all(slot.is_done for slot in self._slots)

    def _start_missing(self) -> None:
        """Until one child has worked only one is tried: what is wrong is said once."""
        if self._stop_requested.is_set():
            return
        for slot in self._slots if self._has_worked else self._slots[:1]:
            if slot.is_vacant:
                slot.child = ChildProcess(self._application, slot.number)

    def _listen(self) -> None:
        pipes = {child.pipe: child for child in self._children() if not child.pipe.closed}
        if not pipes:
            time.sleep(_LOOK)
        try:
            ready = wait(list(pipes), _LOOK)
        except (OSError, ValueError):  # one was closed meanwhile, by whoever could not send
            return
        for pipe in ready:
            child = pipes[pipe]
            for message in child.messages():
                self._hear(child, message)

    def _decided(self, defaults: dict[str, dict[str, Any]]) -> ChildSpec:
        """What children are to do: what the first one told decides."""
        if self._spec is None:
            try:
                self._spec, self._options = self._plan(defaults)
            except Exception:
                self._kill_all()
                for child in self._children():
                    child.process.wait()
                raise
            self._application = replace(self._application, logs=self._spec.logs)
            self._slots += map(Slot, range(2, self._options.processes + 1))
            self._stop_within = self._spec.settings.grace + _MARGIN
            log.info("may use up to %d connections to the server at once", self._connections)
        return self._spec

    @property
    def _settings(self) -> Settings:
        assert self._spec is not None, "a child asks for it before all else"
        return self._spec.settings

    @property
    def _connections(self) -> int:
        assert self._spec is not None, "a child asks for it before all else"
        return self._spec.connections_of(self._options.processes)

    def _hear(self, child: ChildProcess, message: object) -> None:
        match message:
            case Configured(defaults):
                child.send(self._decided(defaults).of_number(child.number))
            case Statements():
                self._told.learn(message)
            case Address():
                self._told.learn(message)
                self._parent_heartbeat.start(self._settings)
            case Serving(tasks):
                self._lookout.serve(tasks, self._settings, self._connections)
            case Expecting(delay):
                self._lookout.expect(delay)
            case FoundMore(queue):
                self._lookout.pass_on(queue, self._options.processes, child)
            case Kill(run_id):
                child.condemn(run_id)
            case PassedOn(queue, hops):
                self._lookout.pass_on(queue, hops, child)
            case Registered():
                self._has_worked = True
                self._take_over(child)
            case Drained(runs):
                self.runs += runs
                self._finished(child)
            case _:
                child.process_id, child.has_left = None, True

    def _take_over(self, child: ChildProcess) -> None:
        for slot in self._slots:
            if slot.successor is child and (old := slot.succeed()) is not None:
                old.ask_to_stop(self._stop_within)
                self._leaving.append(old)

    def _finished(self, child: ChildProcess) -> None:
        for slot in self._slots:
            slot.is_done = slot.is_done or (slot.child is child and not child.is_leaving)

    def _take_leave(self) -> None:
        for child in list(self._children()):
            if child.is_alive:
                if time.monotonic() > child.kill_at:
                    child.kill("it did not end in time")
                continue
            for message in child.messages():
                self._hear(child, message)
            if (abandoned := child.abandoned()) is not None:
                self._parent_heartbeat.settle(abandoned)
            self._vacate(child)

    def _vacate(self, child: ChildProcess) -> None:
        if child in self._leaving:
            self._leaving.remove(child)
            return
        slot = next(slot for slot in self._slots if child in slot.children)
        if slot.successor is child:
            slot.successor = None
            self._to_replace.clear()
            self._is_replacing = False
            log.error("a new process %s before it was ready: the old ones go on", child.how_it_ended())
            return
        slot.succeed()
        if not self._stop_requested.is_set() and not slot.is_done:
            self._plan_restart(slot, child)

    def _plan_restart(self, slot: Slot, child: ChildProcess) -> None:
        if not self._has_worked and self._options.reload:
            slot.start_at = math.inf  # until something changes
            return
        if not self._has_worked:
            if (child.process.returncode or 0) < 0:  # else it has said why
                log.error("process %d %s before it was ready", child.pid, child.how_it_ended())
            self._exit_code = 1
            self._stop_requested.set()
            return
        if child.process.returncode == 0:
            slot.start_at = 0.0
            return
        seconds = slot.hold_back(child)
        log.error("process %d %s; a new one starts in %.1f s", child.pid, child.how_it_ended(), seconds)

    def _kill_overdue(self) -> None:
        for child in self._children():
            if overdue := child.overdue(self._options.kill_after):
                jobs = ", ".join(str(entry.job_id) for entry in overdue)
                child.kill(f"job {jobs} did not end in time")

    def _notice_absence(self) -> None:
        """Where this process was held up, so perhaps were its children: they are judged anew."""
        looked_at, self._looked_at = self._looked_at, time.monotonic()
        if self._looked_at - looked_at > _ABSENT:
            for child in self._children():
                child.watch_anew()

    def _look_for_hung(self) -> None:
        """A child whose interpreter is held by C code, or that was stopped, can do and say nothing itself."""
        for child in self._children():
            if child.started.alive_at and not child.has_left:
                self._look_whether_hung(child, child.silence)

    def _look_whether_hung(self, child: ChildProcess, silence: float) -> None:
        is_hung = silence > self._options.silent_after
        if child.is_hung and not is_hung:
            log.warning("process %d goes on", child.pid)
        elif is_hung and not child.is_hung:
            log.error(
                "process %d makes no progress: nothing of it has run for %.0f s. It holds %s. "
                "What it has not begun is given to others",
                child.pid,
                silence,
                child.work,
            )
            if child.process_id is not None:
                self._parent_heartbeat.relieve(child.process_id, child.revoke)
        child.is_hung = is_hung
        if 0 < self._options.hung_after < silence and child.killed_after is None:
            child.killed_after = silence
            child.kill(f"it made no progress for {silence:.0f} s")

    def _replace(self) -> None:
        for slot in self._slots:
            if slot.child and slot not in self._to_replace and self._options.is_spent(*slot.child.started.vitals):
                self._to_replace.append(slot)
        is_changing = self._leaving or any(slot.successor for slot in self._slots)
        if self._to_replace and not self._stop_requested.is_set() and not is_changing:
            slot = self._to_replace.popleft()
            slot.successor = ChildProcess(self._application, slot.number)
        elif self._is_replacing and not self._to_replace and not is_changing:
            self._is_replacing = False
            log.info("all processes are replaced")

    def _living(self) -> list[uuid.UUID]:
        return [child.process_id for child in self._children() if child.process_id is not None]

    def _claiming(self) -> list[ChildProcess]:
        """Those that may take new jobs."""
        return [
            child for child in self._children() if child.process_id is not None and not child.is_leaving | child.is_hung
        ]

    def _hung(self) -> list[ChildProcess]:
        return [child for child in self._children() if child.is_hung]

    def _gone(self, process_id: uuid.UUID) -> None:
        for child in self._children():
            if child.process_id == process_id:
                child.process_id = None
                child.send(Gone(process_id))

    def _beaten(self, process_ids: set[uuid.UUID], moment: float) -> None:
        for child in self._children():
            if child.process_id in process_ids:
                child.started.beat_at = max(child.started.beat_at, moment)
