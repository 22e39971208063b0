"""Every error this package raises on purpose."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqla_jobs.models.columns import JobMixin


class JobsError(Exception):
    """The base of the library's errors. The message names the value, the cause and the remedy."""


class ConfigurationError(JobsError):
    """The models, the database or the application are set up in a way that cannot work."""


class DeclarationError(JobsError):
    """A task or one of its options cannot be what it was declared to be."""


class ArgumentsError(JobsError):
    """Arguments do not fit their task, or could not be stored and read back unchanged."""


class UnknownTask(JobsError, KeyError):
    """No task of that name is registered."""

    def __str__(self) -> str:
        return Exception.__str__(self)  # KeyError would show the message's repr


class UnknownJob(JobsError, LookupError):
    """There is no job with that id."""


class JobExists(JobsError):
    """Another job has the unique key, and `Unique(on_conflict="raise")` was asked for."""

    job: JobMixin
    """The job that has the key."""

    def __init__(self, message: str, job: JobMixin) -> None:
        super().__init__(message)
        self.job = job


class JobFailed(JobsError):
    """A job that somebody waited for has failed for good, or was cancelled."""

    job: JobMixin
    """The job, with its runs, outside of any session."""

    def __init__(self, message: str, job: JobMixin) -> None:
        super().__init__(message)
        self.job = job


class UnstorableResult(JobsError):
    """A task has returned a value that cannot be stored: its run fails, and is not tried again."""


class EntityGone(JobsError):
    """A row that was given as an argument has been deleted since: the run ends cancelled."""


class LeaseLost(JobsError):
    """The end of an attempt changed no row in the transaction of its run, so that nothing of it is committed."""

    def __init__(self) -> None:
        super().__init__(
            "the outcome of this run changed no row, so its writes are rolled back: another process has taken the job, "
            "or SET ROLE or SET search_path in the task, row level security or a trigger that returns NULL hides it"
        )
