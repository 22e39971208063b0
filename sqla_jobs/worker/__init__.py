"""The worker, which runs jobs: the class `Worker` and the command `python -m sqla_jobs.worker`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqla_jobs.runtime.settings import Settings, WorkerOptions
    from sqla_jobs.worker.worker import Worker

__all__ = ["Settings", "Worker", "WorkerOptions"]


def __getattr__(name: str) -> Any:
    """Import each name on first use: the parent of worker processes needs no `Worker`."""
    if name == "Worker":
        from sqla_jobs.worker.worker import Worker

        return Worker
    if name in __all__:
        from sqla_jobs.runtime import settings

        return getattr(settings, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
