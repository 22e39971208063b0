"""The parent of worker processes, which starts, watches and replaces them. The parent imports no application code."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterator
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
from sqla_jobs.supervisor.crew import Crew
from sqla_jobs.supervisor.messages import (
    Address,
    Configured,
    Observed,
    Recovered,
    ToParent,
)
from sqla_jobs.supervisor.options import Application, ChildSpec, Setup, SupervisorOptions
from sqla_jobs.supervisor.oversight import ask_for_stacks
from sqla_jobs.supervisor.report import Report

log: logging.Logger = logging.getLogger("sqla_jobs.worker")

_LOOK = 0.1
"""Seconds between looks at the children."""

Plan = Callable[[dict[str, Any]], tuple[ChildSpec, SupervisorOptions]]
"""Makes the children's spec and the parent's options from the options in an application's config."""


class Supervisor:
    """Runs `application` in as many child processes for each of its databases as `plan` specifies.

    The first child sends the application's config and the names of its databases, and `plan` is called with the config.
    Until then, the `options` from the command line apply.

    SIGTERM and SIGINT stop all children gracefully; a second signal stops them immediately. SIGHUP replaces the
    children of each database one by one with new processes, which import the application anew, and name the databases
    anew. SIGUSR1 makes each child log the stacks of its jobs.
    """

    def __init__(self, application: Application, plan: Plan, options: SupervisorOptions) -> None:
        self._plan = plan
        self._setup = Setup(application, options)
        self._counters = Counters()
        self._signals: set[int] = set()
        self._stop_requested = StopRequest()
        self._crews: list[Crew] = [self._new_crew("")]
        """The children of each database. Until the first child has sent the names, there is one without a name."""
        self.report: Report = Report(self._crews, self._counters, lambda: self._setup)
        """The state of the parent and its children, for any thread."""
        subscribe(RECOVERED, self._tell_of_recovery)

    def _new_crew(self, name: str) -> Crew:
        return Crew(name, lambda: self._setup, self._counters, self._stop_requested)

    @property
    def runs(self) -> int:
        """The number of runs by children that have drained their queues."""
        return sum(crew.runs for crew in self._crews)

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
                since = self.report.turned()
                for crew in [*self._crews]:
                    working_in(crew.name, partial(self._look_at, crew, since))
                if all(crew.state == "away" for crew in self._crews) and not self._setup.options.reload:
                    self._stop_requested.set()
                self._listen()
        for crew in self._crews:
            working_in(crew.name, crew.close)
        has_failed = any(crew.has_failed for crew in self._crews)
        return int(has_failed or (self._stop_requested.is_set() and not self._stop_requested.is_signalled))

    def _look_at(self, crew: Crew, since: float) -> None:
        """Start, watch and replace the children of a database."""
        crew.start_missing()
        for child in [*crew.children]:
            if child.is_alive:
                crew.kill_overstayed(child)
                continue
            for message in child.messages():
                self._hear(crew, child, message)
            crew.take_leave(child)
            self.report.take_over(child)
        crew.oversee(since)
        if any(crew.children) or not self._is_retired(crew):
            crew.replace()
        else:
            crew.close()
            self._crews.remove(crew)

    def _is_retired(self, crew: Crew) -> bool:
        """Return whether a crew serves its database no more. One that drains gives up its slots, too, and stays."""
        return not crew.children.slots and not self._setup.spec.drain

    def replace_all(self) -> None:
        """Replace all children, one by one. Any thread or signal handler may call this."""
        self._signals.add(signal.SIGHUP)

    def _tell_of_recovery(self, _: str) -> None:
        for child in self._children():
            child.hint(Recovered())

    def _children(self) -> Iterator[ChildProcess]:
        return (child for crew in [*self._crews] for child in crew.children)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals.add(number)

    def _kill_all(self) -> None:
        for child in self._children():
            child.process.kill()

    def _obey_signals(self) -> None:
        wanted = self._signals.copy()  # in two steps, and always the same set: another thread may be about to add to it
        self._signals.difference_update(wanted)
        if self._stop_requested.is_set():
            for crew in self._crews:
                crew.ask_to_stop()
        if signal.SIGHUP in wanted:
            log.info("replacing all processes, one by one")
            for crew in self._crews:
                crew.replace_all()
        if signal.SIGUSR1 in wanted:
            for child in self._children():
                ask_for_stacks(child)

    def _is_over(self) -> bool:
        has_slots = any(crew.children.slots for crew in self._crews)
        return not any(self._children()) and (self._stop_requested.is_set() or not has_slots)

    def _listen(self) -> None:
        pipes = {child.pipe: (crew, child) for crew in self._crews for child in crew.children if not child.pipe.closed}
        if not pipes:
            time.sleep(_LOOK)
        try:
            ready = wait(list(pipes), _LOOK)
        except (OSError, ValueError):  # another thread closed a pipe after an error
            return
        for pipe in ready:
            crew, child = pipes[pipe]
            for message in child.messages():
                working_in(crew.name, partial(self._hear, crew, child, message))

    def _hear(self, crew: Crew, child: ChildProcess, message: ToParent) -> None:
        match message:
            case Configured(defaults, shards):
                self._decide(crew, defaults, shards)
                if not child.is_leaving:  # otherwise its database may be served no more
                    child.send(self._setup.spec.of_child(crew.name, child.number))
            case Recovered():
                end_pauses()
            case Observed():
                self.report.hear(child, message)
            case Address() if crew.identity is None:
                crew.hear(child, message)
                self._check_name(crew)
            case _:
                crew.hear(child, message)

    def _decide(self, crew: Crew, defaults: dict[str, Any], shards: tuple[str, ...]) -> None:
        """Make the children's spec from the config that the first child has sent. It serves the first of the databases.

        After each message, serve the databases that were added, and no longer serve those that were removed.
        """
        if is_first := self._setup.planned is None:
            try:
                spec, options = self._plan(defaults)
            except Exception:
                self._kill_all()
                for child in self._children():
                    child.process.wait()
                raise
            self._setup = Setup(replace(self._setup.application, logs=spec.logs), options, spec)
            self._counters.is_wanted = spec.is_observed
            crew.name = spec.names(shards)[0]
        spec = self._setup.spec
        names = spec.names(shards)
        for name in names:
            if (one := next((one for one in self._crews if one.name == name), None)) is None:
                self._crews.append(one := self._new_crew(name))
                if not is_first:
                    one.state = "working"  # an error in a database that was added does not end the parent
            if is_first or not spec.drain:
                one.children.make_room(self._setup.options.processes)
        for one in self._crews:
            if one.name not in names:
                one.retire()

    def _check_name(self, crew: Crew) -> None:
        """Do not serve the same tables under two names. If the worker is about to start, end it."""
        for other in self._crews:
            if other is not crew and other.children.slots and other.identity == crew.identity:
                self._setup.spec.logs.tell(
                    f"Error: [{crew.name}] this is the database {other.name!r} again, with the same tables: name it "
                    "once"
                )
                if crew.state == "working":
                    crew.retire()
                else:
                    self._stop_requested.set()
