"""The clock, which enqueues the jobs of schedules: `Clock`, and `python -m sqla_jobs.clock`."""

from sqla_jobs.clock.clock import Clock

__all__ = ["Clock"]
