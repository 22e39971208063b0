"""Assertions that find jobs by their task, some of their arguments and their options."""

from __future__ import annotations

from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqla_jobs.database.commits import write_now
from sqla_jobs.database.sharding import in_shard_of
from sqla_jobs.errors import ArgumentsError
from sqla_jobs.jobs import Jobs
from sqla_jobs.models.columns import JobMixin
from sqla_jobs.tasks.enqueuer import Enqueuer
from sqla_jobs.tasks.sessions import AnySession, any_session
from sqla_jobs.testing.matching import Criteria
from sqla_jobs.testing.messages import asked_for, call_of, check_task, check_task_or_jobs, listed, nearest

J = TypeVar("J", bound=JobMixin)


def enqueued(session: AnySession, what: Jobs[J] | Enqueuer[..., J], /, **arguments: Any) -> list[J]:
    """Return the jobs that were enqueued, whatever their state is now, the oldest first.

    - `session`: the test's session; it is flushed.
    - `what`: a task, `task.options(…)` to find only jobs with these options, or a `Jobs` to find all jobs. A job may
      differ from the given `delay` by up to a second. For `unique=`, the resulting key is compared. The order of the
      jobs in `after=` does not matter.
    - `arguments`: some of the task's arguments, by name. Arguments are compared after decoding, and a default counts as
      a given argument.

    Raises `ArgumentsError` for an argument that the task does not take, or a value that does not fit.
    """
    found, _ = _sort_out(any_session(session, call_of(enqueued, what, arguments)), what, arguments)
    return found


def assert_enqueued(session: AnySession, task: Enqueuer[..., J], /, **arguments: Any) -> J:
    """Assert that `enqueued` finds a job, and return it; if it finds several, return the newest.

    - `session`, `arguments`: as for `enqueued`.
    - `task`: a task, or `task.options(…)`.

    If there is none, raises an `AssertionError` that shows how the nearest jobs differ. Raises `ArgumentsError` as
    `enqueued` does.
    """
    __tracebackhide__ = True
    check_task(task)
    own = any_session(session, call_of(assert_enqueued, task, arguments))
    found, others = _sort_out(own, task, arguments)
    if not found:
        criteria = Criteria(own, task, arguments)
        raise AssertionError(
            nearest(criteria, others)
            if others
            else f"expected a job {asked_for(criteria)}; there is none of this task, in this session"
        )
    return found[-1]


def assert_not_enqueued(session: AnySession, what: Jobs[Any] | Enqueuer[..., Any], /, **arguments: Any) -> None:
    """Assert that `enqueued` finds no job; for a `Jobs`, that there is no job at all.

    - `session`, `what`, `arguments`: as for `enqueued`.

    If there are such jobs, raises an `AssertionError` that lists them. Raises `ArgumentsError` as `enqueued` does.
    """
    __tracebackhide__ = True
    own = any_session(session, call_of(assert_not_enqueued, what, arguments))
    if found := enqueued(own, what, **arguments):
        named = "" if isinstance(what, Jobs) else f" {asked_for(Criteria(own, what, arguments))}"
        raise AssertionError(f"expected no job{named}; there are {len(found)}:{listed(what, found)}")


def _sort_out(session: Session, what: Jobs[J] | Enqueuer[..., J], arguments: dict[str, Any]) -> tuple[list[J], list[J]]:
    """Return the jobs that match, and the task's other jobs."""
    check_task_or_jobs(what)
    models = what._models
    job: Any = models.Job
    rows = sa.select(job).order_by(job.id).execution_options(populate_existing=True)
    write_now(session)
    if isinstance(what, Jobs):
        if arguments:
            raise ArgumentsError(f"{min(arguments)} is an argument of a task: give the task, and not the Jobs")
        return [*session.scalars(rows)], []
    criteria = Criteria(session, what, arguments)
    names = (what._declaration.name, *what._declaration.aliases)
    found: list[J] = []
    others: list[J] = []
    for one in session.scalars(rows.where(job.task.in_(names))):
        with in_shard_of(session, one):
            (found if all(compared.is_equal for compared in criteria.compare(one)) else others).append(one)
    return found, others
