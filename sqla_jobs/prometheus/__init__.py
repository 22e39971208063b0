"""Metrics for Prometheus. Needs the extra `prometheus`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

    from sqla_jobs.jobs import Jobs

__all__ = ["collector"]


def collector(jobs: Jobs[Any]) -> Collector:
    """Return a collector of the metrics of `jobs`, for a registry: `REGISTRY.register(collector(jobs))`.

    - `jobs`: the `Jobs`. A registry accepts only one such collector.

    A scrape reads the database that `jobs` is bound to, at most every 10 seconds, and each statement may take 3
    seconds. The collector also shows the counters of this process's workers (`jobs.worker(…)`), from this call on.

    Raises `ConfigurationError` if prometheus-client is not installed.
    """
    from sqla_jobs.prometheus.source import JobsSource, check_installed

    check_installed("sqla_jobs.prometheus")
    from sqla_jobs.prometheus.collecting import MetricsCollector

    return MetricsCollector(JobsSource(jobs))
