"""Runs jobs: `Worker`, and `python -m sqla_jobs.worker`."""

from sqla_jobs.runtime.settings import Settings
from sqla_jobs.worker.worker import Worker

__all__ = ["Settings", "Worker"]
