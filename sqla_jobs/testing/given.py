"""Checks of the arguments to the test kit's functions."""

from __future__ import annotations

from sqla_jobs.errors import ArgumentsError
from sqla_jobs.jobs import Jobs
from sqla_jobs.tasks.enqueuer import Enqueuer

HOW_TO_GIVE_A_TASK: str = "write @jobs.task above a function; a class that is a task is given as jobs.tasks['its name']"


def check_task(what: object) -> None:
    """Raise `ArgumentsError` unless `what` is a task, with or without options."""
    if not isinstance(what, Enqueuer):
        raise ArgumentsError(f"expected a task, got {what!r:.200}: {HOW_TO_GIVE_A_TASK}")


def check_task_or_jobs(what: object) -> None:
    """Raise `ArgumentsError` unless `what` is a task or a `Jobs`."""
    if not isinstance(what, Enqueuer | Jobs):
        raise ArgumentsError(f"expected a task or the Jobs, got {what!r:.200}: {HOW_TO_GIVE_A_TASK}")
