"""The errors of this package."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqla_jobs.models.columns import JobMixin


class JobsError(Exception):
    """The base class of all errors in this package. The message names the value, the cause and the remedy."""


class ConfigurationError(JobsError):
    """The models, the database or the application is configured incorrectly."""


class DeclarationError(JobsError):
    """The declaration of a task, or one of its options, is invalid."""


class ArgumentsError(JobsError):
    """Arguments do not fit their task, or cannot be stored and read back unchanged."""


class Undecryptable(JobsError):
    """A stored value is encrypted with a key that this process lacks."""


class UnknownTask(JobsError, KeyError):
    """No task with that name is registered."""

    def __str__(self) -> str:
        return Exception.__str__(self)  # KeyError would show the message's repr


class UnknownJob(JobsError, LookupError):
    """There is no job with that id."""


class JobExists(JobsError):
    """Another job holds the unique key, and either `Unique(on_conflict="raise")` was requested, or that job is not in
    the batch of `options(batch=…)`."""

    job: JobMixin
    """The job that holds the key."""

    def __init__(self, message: str, job: JobMixin) -> None:
        super().__init__(message)
        self.job = job


class JobFailed(JobsError):
    """The job that the caller is waiting for has failed for good or been cancelled."""

    job: JobMixin
    """The job, with its runs, detached from any session."""

    def __init__(self, message: str, job: JobMixin) -> None:
        super().__init__(message)
        self.job = job


class UnstorableResult(JobsError):
    """A task or a step returned a value that cannot be stored. The job fails without another attempt."""


class SignalTimeout(JobsError, TimeoutError):
    """The signal that `run.wait_for` waited for did not come in time. Later attempts of the job get this error, too."""


class EntityGone(JobsError):
    """The row behind an entity argument is not there. If that lasts for some seconds, the job ends as `cancelled`."""


class LeaseLost(JobsError):
    """The attempt no longer owns its job. Nothing in its transaction is committed."""

    def __init__(self) -> None:
        super().__init__(
            "the outcome of this run changed no row, so its writes are rolled back: another process has taken the job, "
            "or SET ROLE or SET search_path in the task, row level security or a trigger that returns NULL hides it"
        )


class RowHeld(JobsError):
    """Another transaction holds the job's row. Nothing in the attempt's transaction is committed."""

    def __init__(self) -> None:
        super().__init__(
            "another transaction held the job's row for too long, so what the run had not stored is rolled back: keep "
            "transactions short that signal, cancel or change a job, or enqueue its unique key"
        )
