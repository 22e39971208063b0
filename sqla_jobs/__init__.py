"""Background jobs in your own SQLAlchemy metadata and PostgreSQL database, without a broker."""

from sqla_jobs.errors import (
    ArgumentsError,
    ConfigurationError,
    DeclarationError,
    JobsError,
    UnknownJob,
    UnknownTask,
)
from sqla_jobs.jobs import Jobs
from sqla_jobs.models.columns import JobMixin
from sqla_jobs.models.types import PARKED, JobState
from sqla_jobs.rules.outcomes import Cancel, RunOutcome, Snooze
from sqla_jobs.tasks.context import RunContext

__all__ = [
    "PARKED",
    "ArgumentsError",
    "Cancel",
    "ConfigurationError",
    "DeclarationError",
    "JobMixin",
    "JobState",
    "Jobs",
    "JobsError",
    "RunContext",
    "RunOutcome",
    "Snooze",
    "UnknownJob",
    "UnknownTask",
]
