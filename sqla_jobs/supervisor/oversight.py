"""Oversight of children. It kills children that make no progress, or whose jobs overrun."""

from __future__ import annotations

import logging
import time

from sqla_jobs.supervisor.child import ChildProcess
from sqla_jobs.supervisor.roster import Roster
from sqla_jobs.supervisor.spec import SupervisorOptions

log: logging.Logger = logging.getLogger("sqla_jobs.worker")

_ABSENT = 1.0
"""If more seconds than this pass between two looks, the parent itself was delayed and cannot judge its children."""
_NO_ANSWER = 2.0
"""Seconds of silence after which a child is not expected to react to a signal."""


class Oversight:
    """Finds children that are hung because C code holds their interpreter lock, or because they were suspended."""

    def __init__(self, children: Roster) -> None:
        self._children = children
        self._looked_at = time.monotonic()

    def look(self, options: SupervisorOptions) -> bool:
        """Check all children, and kill those that exceed the limits in `options`. Return whether one is newly hung."""
        self._notice_absence()
        before = self._children.hung()
        for child in self._children:
            if overdue := child.overdue(options.kill_after):
                jobs = ", ".join(str(entry.job_id) for entry in overdue)
                child.kill(f"job {jobs} did not end in time")
            if child.started.alive_at and not child.has_left:
                self._look_whether_hung(child, child.silence, options)
        return any(child not in before for child in self._children.hung())

    def _notice_absence(self) -> None:
        """If the parent was delayed, measure all silences only from now on: perhaps its children were delayed, too."""
        looked_at, self._looked_at = self._looked_at, time.monotonic()
        if self._looked_at - looked_at > _ABSENT:
            for child in self._children:
                child.watch_anew()

    def _look_whether_hung(self, child: ChildProcess, silence: float, options: SupervisorOptions) -> None:
        is_hung = silence > options.silent_after
        if child.is_hung and not is_hung:
            log.warning("process %d continues", child.pid)
        elif is_hung and not child.is_hung:
            log.error(
                "process %d makes no progress: none of its code has run for %.0f s. It holds %s. "
                "Jobs that it has not started are given to other processes",
                child.pid,
                silence,
                child.work,
            )
        child.is_hung = is_hung
        if 0 < options.hung_after < silence and child.killed_after is None:
            child.killed_after = silence
            child.kill(f"it made no progress for {silence:.0f} s")


def ask_for_stacks(child: ChildProcess) -> None:
    """Make a child log the stacks of its jobs. If the child cannot, log the reason here."""
    child.show_stacks()
    if child.started.alive_at and child.silence > _NO_ANSWER:
        log.warning(
            "process %d cannot log the stacks of its jobs: none of its code has run for %.0f s. It holds %s. "
            "To see them, run `py-spy dump --native --pid %d`",
            child.pid,
            child.silence,
            child.work,
            child.pid,
        )
