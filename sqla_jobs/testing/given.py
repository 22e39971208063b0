"""Checks of the arguments to the test kit's functions."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapper

from sqla_jobs.errors import ArgumentsError
from sqla_jobs.jobs import Jobs
from sqla_jobs.rules.wording import did_you_mean
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


def check_jobs(jobs: object) -> None:
    """Raise `ArgumentsError` unless `jobs` is a `Jobs`."""
    if not isinstance(jobs, Jobs):
        raise ArgumentsError(f"expected the Jobs, got {jobs!r:.200}: write drain(session, jobs)")


def check_columns(model: type[Any], columns: Mapping[str, Any]) -> None:
    """Raise `ArgumentsError` for a name that is not a column of the model, and for a time without a time zone."""
    for name, value in columns.items():
        if not hasattr(model, name):
            mapper: Mapper[Any] = sa.inspect(model, raiseerr=True)
            raise ArgumentsError(
                f"{model.__name__} has no column {name!r:.60}{did_you_mean(name, mapper.attrs.keys())}"
            )
        if isinstance(value, datetime) and value.utcoffset() is None:
            raise ArgumentsError(f"{name}={value!r} has no time zone: write datetime(…, tzinfo=UTC)")


def check_error(error: object) -> None:
    """Raise `ArgumentsError` unless `error` is an exception or None."""
    if error is not None and not isinstance(error, BaseException):
        raise ArgumentsError(f"error must be an exception, such as ValueError('it broke'), got {error!r:.60}")
