"""A parent's children for one database, and its work there: their heartbeats, and the lookout for jobs."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any, Literal

from sqla_jobs.runtime.counters import Counters
from sqla_jobs.runtime.metrics import Figures
from sqla_jobs.runtime.set_aside import SetAside
from sqla_jobs.runtime.stopping import StopRequest
from sqla_jobs.supervisor.child import ChildProcess
from sqla_jobs.supervisor.database import Database
from sqla_jobs.supervisor.heartbeat import ParentHeartbeat
from sqla_jobs.supervisor.lookout import ParentLookout
from sqla_jobs.supervisor.messages import (
    Address,
    Drained,
    Expecting,
    FoundMore,
    Heard,
    Kill,
    Leaving,
    PassOn,
    Registered,
    Serving,
    ToCrew,
)
from sqla_jobs.supervisor.options import AWAY, Setup
from sqla_jobs.supervisor.oversight import oversee
from sqla_jobs.supervisor.roster import Roster, Slot

log: logging.Logger = logging.getLogger("sqla_jobs.worker")

_MARGIN = 20.0
"""After the grace period, a child may spend this many seconds storing the ends of its runs. Then it is killed."""
_SETTLE = 5.0
"""When the parent stops, it may spend this many seconds storing the ends of killed children's runs."""
_SCRAPE, _SCRAPE_EACH = 5.0, 1.0
"""Seconds that a scrape waits for the figures of the database, and of each of several."""
_AGAIN = 1.0
"""Seconds until the next try to start a thread."""


class Crew:
    """The children that serve one database. The parent starts, watches and replaces them, and works for them there.

    It sends their heartbeats once the first of them has sent the database's address, and looks for jobs once one of
    them asks for that. The main thread calls all methods, and what happens in another crew delays none of them.
    """

    def __init__(self, name: str, setup: Callable[[], Setup], counters: Counters, stop_requested: StopRequest) -> None:
        self.name = name
        self.children: Roster = Roster()
        self.state: Literal["starting", "away", "working"] = "starting"
        """`away` if the database could not be reached yet, and `working` once a child has registered.

        Before that, an error which only a person can correct ends the parent.
        """
        self.has_failed: bool = False
        """True if the queues could not be drained."""
        self.runs: int = 0
        """The number of runs by children that have drained their queues."""
        self._setup = setup
        self._counters = counters
        self._stop_requested = stop_requested
        self._replace_before = 0.0
        """Children that started before this time are being replaced on request; 0 once all are replaced."""
        self._set_aside = SetAside()
        self._heartbeat: ParentHeartbeat | None = None
        self._lookout: ParentLookout | None = None
        """The lookout, once a child that does not look for itself has registered."""
        self._start_at = math.inf
        """When to start the threads that are missing, by `time.monotonic()`."""

    def start_missing(self) -> None:
        """Start children in vacant slots, and the threads that are missing.

        Start only one child until one has registered, so that an error is logged only once.
        """
        if not self._stop_requested.is_set():
            for slot in self.children.slots if self.state == "working" else self.children.slots[:1]:
                if slot.is_vacant:
                    slot.child = self._started(slot)
        if time.monotonic() >= self._start_at:
            self._start_threads()

    def _started(self, slot: Slot) -> ChildProcess | None:
        """Start a child. If the system refuses that, log a warning, and let the slot wait before the next try."""
        try:
            return ChildProcess(self._setup().application, slot.number)
        except OSError as error:
            log.warning("no process can be started, and the next try is in %.1f s: %s", slot.hold_back(None), error)
            return None

    def _start_threads(self) -> None:
        """Start the threads that are missing. If the system refuses that, log a warning: a later call tries again."""
        try:
            for one in (self._heartbeat, self._lookout):
                if one is not None:
                    one.start()
        except RuntimeError as error:
            self._start_at = time.monotonic() + _AGAIN
            log.warning(
                "a thread of the parent is missing, and the next try to start it is in %g s: %s; ulimit -u may be too "
                "low",
                _AGAIN,
                error,
            )
        else:
            self._start_at = math.inf

    def hear(self, child: ChildProcess, message: ToCrew) -> None:
        """Do what a message from a child says."""
        match message:
            case Address():
                self._meet(message)
            case Serving(tasks):
                self._serve(tasks)
                child.hint(Heard(""))  # jobs may have come after its first look but before `_serve`
            case Expecting() | FoundMore() | PassOn():
                if self._lookout is not None:
                    self._lookout.hear(message, child)  # otherwise the child sends `Serving` next, and is told to look
            case Kill(run_id):
                child.condemn(run_id)
            case Registered():
                self.state = "working"
                if (old := self.children.take_over(child)) is not None:
                    old.ask_to_stop(self._stop_within)
            case Leaving():
                child.process_id, child.has_left = None, True
                child.must_end(self._stop_within)
            case Drained(runs):
                self.runs += runs
                self.children.finished(child)
                child.must_end(self._stop_within)

    def _meet(self, address: Address) -> None:
        """Send heartbeats from now on. Later connections go to the latest address."""
        if self._heartbeat is not None:
            self._heartbeat.database.address = address
            return
        spec, scrape = self._setup().spec, _SCRAPE_EACH if self.name else _SCRAPE
        database = Database(address, patience=spec.settings.patience, most=spec.of_parent, patience_of_scrapes=scrape)
        self._heartbeat = ParentHeartbeat(database, spec.settings, self._set_aside, self.children, self._counters)
        self._start_threads()

    @property
    def identity(self) -> tuple[Any, ...] | None:
        """What tells the tables from those of all other databases, once a child has sent the address."""
        return None if self._heartbeat is None else self._heartbeat.database.address.identity

    def figures(self) -> Figures | None:
        """Return the figures of the database, or None if it cannot be reached. Any thread may call this."""
        return None if self._heartbeat is None else self._heartbeat.database.figures.get()

    def _serve(self, tasks: tuple[str, ...]) -> None:
        """Look for jobs of these tasks from now on."""
        assert self._heartbeat is not None, "the child has sent its address"
        if self._lookout is None:
            setup, database = self._setup(), self._heartbeat.database
            self._lookout = ParentLookout(
                database,
                setup.spec.settings,
                self._set_aside,
                tasks=tasks,
                connections=setup.spec.connections_of(setup.options.processes, database.address.sessions),
                children=self.children.claiming,
            )
            self._start_threads()
        self._lookout.serve(tasks)

    def oversee(self, since: float) -> None:
        """Kill children that make no progress or whose jobs overrun. `since` is as in `oversee`."""
        is_any_newly_hung = oversee(self.children, self._setup().options, since)
        if is_any_newly_hung and self._lookout is not None:
            self._lookout.heard("")  # the hung child may have been the only one that was told of some jobs

    @property
    def _stop_within(self) -> float:
        return self._setup().grace + _MARGIN

    def ask_to_stop(self) -> None:
        """Ask all children to stop, once."""
        for child in self.children:
            if not child.is_leaving:
                child.ask_to_stop(self._stop_within)

    def retire(self) -> None:
        """Serve the database no more."""
        self.ask_to_stop()
        self.children.retire()

    def kill_overstayed(self, child: ChildProcess) -> None:
        """Kill a child that was to end by now."""
        if time.monotonic() > child.kill_at:
            child.kill("it did not end in time")

    def take_leave(self, child: ChildProcess) -> None:
        """Settle the work of a child that has ended, and decide when the next one starts in its slot."""
        if (abandoned := child.abandoned()) is not None and self._heartbeat is not None:
            self._heartbeat.settle(abandoned)
        if (slot := self.children.vacated(child)) is None:
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
        code, setup = child.process.returncode or 0, self._setup()
        has_worked = self.state == "working"
        if not has_worked and setup.options.reload and code != AWAY:
            slot.start_at = math.inf  # until a file changes
            return
        if not has_worked and code != AWAY:
            if code < 0:  # otherwise the child has logged the reason
                log.error("process %d %s before it was ready", child.pid, child.how_it_ended())
            self._stop_requested.set()
            return
        if setup.spec.drain and code in (1, AWAY):  # it has logged what it cannot drain
            self.has_failed = True
            self.retire()
            return
        if setup.spec.drain and child.has_left:  # it could not send `Drained`, but has stored all ends
            self.runs += child.started.vitals[0]
            self.children.slots.remove(slot)
            return
        if code == 0 and child.ready_at is not None:
            slot.start_at = 0.0
            return
        seconds = slot.hold_back(child)
        if has_worked:
            log.error("process %d %s; a new one starts in %.1f s", child.pid, child.how_it_ended(), seconds)
        else:
            self.state = "away"  # the child has logged the reason, and the next one logs that it tries

    def replace_all(self) -> None:
        """Replace all children, one by one."""
        self._replace_before = time.monotonic()
        for slot in self.children.slots:
            slot.start_at = 0.0

    def replace(self) -> None:
        """Start a successor of the oldest child that is to be replaced, or has reached its limits."""
        if self._stop_requested.is_set() or self.children.is_changing:
            return
        old: dict[float, Slot] = {}
        for slot in self.children.slots:
            if (child := slot.child) is None or time.monotonic() < slot.start_at:
                continue
            if child.started_at < self._replace_before or self._setup().options.is_spent(*child.started.vitals):
                old[child.started_at] = slot
        if old:
            slot = old[min(old)]
            slot.successor = self._started(slot)
        elif self._replace_before and all(child.is_registered for child in self.children):
            self._replace_before = 0.0
            log.info("all processes are replaced")

    def close(self) -> None:
        """Stop, once the work of dead children is settled or that takes too long."""
        if self._lookout is not None:
            self._lookout.stop()
        if self._heartbeat is None:
            return
        if not self._heartbeat.close(_SETTLE):
            log.warning(
                "the ends of killed processes' jobs could not be stored; the jobs are taken back when the lease ends"
            )
        self._heartbeat.database.engine.dispose()
