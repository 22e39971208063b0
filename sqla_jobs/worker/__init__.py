"""The worker, which runs jobs: the class `Worker` and the command `python -m sqla_jobs.worker`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqla_jobs.runtime.settings import Settings
    from sqla_jobs.worker.worker import Worker

__all__ = ["Settings", "Worker"]


def __getattr__(name: str) -> Any:
    """Import `Worker` and `Settings` on first use: the parent of worker processes needs neither."""
    if name == "Worker":
        from sqla_jobs.worker.worker import Worker

        return Worker
    if name == "Settings":
        from sqla_jobs.runtime.settings import Settings

        return Settings
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
