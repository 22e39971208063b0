"""The messages of wrong calls and failed assertions: the expected job, the jobs found, and the difference."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from difflib import Differ
from typing import Any

from sqla_jobs.errors import ArgumentsError
from sqla_jobs.jobs import Jobs
from sqla_jobs.models.columns import JobMixin
from sqla_jobs.tasks.enqueuer import Enqueuer
from sqla_jobs.testing.matching import Compared, Criteria, arguments_of

_SHOWN = 3
"""The maximum number of similar jobs in a message."""
_LISTED = 10
HOW_TO_GIVE_A_TASK: str = "write @jobs.task above a function; a class that is a task is given as jobs.tasks['its name']"


def check_task(what: object) -> None:
    """Raise `ArgumentsError` unless `what` is a task, with or without options."""
    if not isinstance(what, Enqueuer):
        raise ArgumentsError(f"expected a task, got {what!r:.200}: {HOW_TO_GIVE_A_TASK}")


def check_task_or_jobs(what: object) -> None:
    """Raise `ArgumentsError` unless `what` is a task or a `Jobs`."""
    if not isinstance(what, Enqueuer | Jobs):
        raise ArgumentsError(f"expected a task or the Jobs, got {what!r:.200}: {HOW_TO_GIVE_A_TASK}")


def call_of(
    function: Callable[..., Any], what: Jobs[Any] | Enqueuer[..., Any], arguments: Iterable[str]
) -> Callable[[], str]:
    """Return a function that returns the text of a call, such as `assert_enqueued(session, send, email=…)`."""

    def call() -> str:
        named = "jobs" if isinstance(what, Jobs) else what._written
        return f"{function.__name__}(session, {', '.join([named, *(f'{name}=…' for name in arguments)])})"

    return call


def asked_for(criteria: Criteria) -> str:
    """Describe the expected job in one line: `of 'send' with email="a@b.c", queue="mail"`."""
    wanted = [f"{name}={json.dumps(value)}" for name, value in criteria.wanted.items()]
    return f"of {criteria.task!r}" + (f" with {', '.join(wanted)}" if wanted else "")


def nearest(criteria: Criteria, jobs: Sequence[JobMixin]) -> str:
    """Return the most similar jobs of the task, each with a diff from the expected values (-) to its own (+)."""
    ranked = sorted(((criteria.compare(job), job) for job in jobs), key=lambda pair: _distance(pair[0]))
    shown = "".join(f"\n\n  {_named(job)}\n{_difference(compared)}" for compared, job in ranked[:_SHOWN])
    more = f"\n\n  and {len(jobs) - _SHOWN} more" if len(jobs) > _SHOWN else ""
    return f"expected a job {asked_for(criteria)} (-); the most similar (+) of {len(jobs)}:{shown}{more}"


def listed(what: Jobs[Any] | Enqueuer[..., Any], jobs: Sequence[JobMixin]) -> str:
    """Return a line for each job, with its arguments."""
    lines = [f"\n  {_named(job)}: {job.task}({_arguments(what, job)})" for job in jobs[:_LISTED]]
    return "".join(lines) + (f"\n  and {len(jobs) - _LISTED} more" if len(jobs) > _LISTED else "")


def _arguments(what: Jobs[Any] | Enqueuer[..., Any], job: JobMixin) -> str:
    stored = arguments_of(job)
    shown = what.tasks.shown(job.task, stored) if isinstance(what, Jobs) else what._declaration.shown(stored)
    return ", ".join(f"{name}={json.dumps(value):.200}" for name, value in shown.items())


def _named(job: JobMixin) -> str:
    return f"job {job.id}, {job.state}"


def _distance(compared: list[Compared]) -> int:
    return sum(not one.is_equal for one in compared)


def _difference(compared: list[Compared]) -> str:
    lines = [line for one in compared for line in Differ().compare(_lines(one.name, one.wanted), _of_the_job(one))]
    return "\n".join(f"  {line}" for line in lines if not line.startswith("?"))


def _of_the_job(one: Compared) -> list[str]:
    if not one.is_there:
        return []
    return _lines(one.name, one.wanted if one.is_equal else one.found)


def _lines(name: str, value: Any) -> list[str]:
    return json.dumps({name: value}, indent=2).splitlines()[1:-1]
