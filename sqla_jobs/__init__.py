"""Background jobs in your own SQLAlchemy metadata and PostgreSQL database, without a broker."""

from sqla_jobs.context import RunContext
from sqla_jobs.core import Jobs
from sqla_jobs.errors import (
    ArgumentsError,
    ConfigurationError,
    DeclarationError,
    JobsError,
    UnknownJob,
    UnknownTask,
)
from sqla_jobs.models import PARKED, JobMixin, JobState, RunOutcome
from sqla_jobs.outcomes import Cancel, Snooze

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
