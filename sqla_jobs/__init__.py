"""Background jobs in your own SQLAlchemy metadata and PostgreSQL database, without a broker."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqla_jobs.actions.batches import BatchCounts
    from sqla_jobs.actions.bulk_change import Changed
    from sqla_jobs.errors import (
        ArgumentsError,
        ConfigurationError,
        DeclarationError,
        JobExists,
        JobFailed,
        JobsError,
        SignalTimeout,
        UnknownJob,
        UnknownTask,
    )
    from sqla_jobs.following.updates import JobUpdate
    from sqla_jobs.jobs import Jobs
    from sqla_jobs.models.columns import JobMixin
    from sqla_jobs.models.types import PARKED, JobState
    from sqla_jobs.models.workflow_columns import BatchMixin
    from sqla_jobs.rules.limits import ConcurrencyLimit, RateLimit
    from sqla_jobs.rules.outcomes import Cancel, Retry, RunOutcome, Snooze
    from sqla_jobs.rules.unique import Unique
    from sqla_jobs.tasks.declaration import TaskOptions
    from sqla_jobs.tasks.enqueue import EnqueueOptions
    from sqla_jobs.tasks.hooks import RunEvent
    from sqla_jobs.tasks.run_context import AsyncRunContext, RunContext
    from sqla_jobs.tasks.task import Task

__all__ = [
    "PARKED",
    "ArgumentsError",
    "AsyncRunContext",
    "BatchCounts",
    "BatchMixin",
    "Cancel",
    "Changed",
    "ConcurrencyLimit",
    "ConfigurationError",
    "DeclarationError",
    "EnqueueOptions",
    "JobExists",
    "JobFailed",
    "JobMixin",
    "JobState",
    "JobUpdate",
    "Jobs",
    "JobsError",
    "RateLimit",
    "Retry",
    "RunContext",
    "RunEvent",
    "RunOutcome",
    "SignalTimeout",
    "Snooze",
    "Task",
    "TaskOptions",
    "Unique",
    "UnknownJob",
    "UnknownTask",
]

_MODULES = {
    "Jobs": "jobs",
    "JobMixin": "models.columns",
    "BatchCounts": "actions.batches",
    "Changed": "actions.bulk_change",
    "BatchMixin": "models.workflow_columns",
    "PARKED": "models.types",
    "JobState": "models.types",
    "JobUpdate": "following.updates",
    "ConcurrencyLimit": "rules.limits",
    "RateLimit": "rules.limits",
    "Cancel": "rules.outcomes",
    "Retry": "rules.outcomes",
    "RunOutcome": "rules.outcomes",
    "Snooze": "rules.outcomes",
    "AsyncRunContext": "tasks.run_context",
    "RunContext": "tasks.run_context",
    "TaskOptions": "tasks.declaration",
    "EnqueueOptions": "tasks.enqueue",
    "Task": "tasks.task",
    "RunEvent": "tasks.hooks",
    "Unique": "rules.unique",
}
"""The module of each name; the other names are in `errors`.

Each module is imported at its first use, so that the command line and the parent of worker processes start without
SQLAlchemy.
"""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
