"""The clock, which enqueues the jobs of schedules: `Clock`, and `python -m sqla_jobs.clock`."""

from sqla_jobs.clock.clock import Clock
from sqla_jobs.clock.sync import sync_schedules

__all__ = ["Clock", "sync_schedules"]
