"""Oversight of children. It kills children that make no progress, or whose jobs overrun."""

from __future__ import annotations

import logging

from sqla_jobs.supervisor.child import ChildProcess
from sqla_jobs.supervisor.options import SupervisorOptions
from sqla_jobs.supervisor.roster import Roster

log: logging.Logger = logging.getLogger("sqla_jobs.worker")

_ABSENT = 1.0
"""If more seconds than this pass between two looks, the parent itself was delayed and cannot judge its children."""
_NO_ANSWER = 2.0
"""Seconds of silence after which a child is not expected to react to a signal."""


def oversee(children: Roster, options: SupervisorOptions, since: float) -> bool:
    """Find children that are hung because C code holds their interpreter lock, or because they were suspended.

    Kill those that exceed the limits in `options`. Return whether any has just stopped making progress. `since` is the
    number of seconds since the last call: if the parent was delayed, perhaps its children were delayed, too.
    """
    before = children.hung()
    for child in children:
        if since > _ABSENT:
            child.watch_anew()
        if overdue := child.overdue(options.kill_after, since):
            jobs = ", ".join(str(entry.job_id) for entry in overdue)
            child.kill(f"job {jobs} did not end in time", overdue={entry.run_id for entry in overdue})
        if child.started.alive_at and not child.has_left:
            _look_whether_hung(child, child.silence, options)
    return any(child not in before for child in children.hung())


def _look_whether_hung(child: ChildProcess, silence: float, options: SupervisorOptions) -> None:
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
    if 0 < options.hung_after < silence:
        child.kill(f"it made no progress for {silence:.0f} s", silence=silence)


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
