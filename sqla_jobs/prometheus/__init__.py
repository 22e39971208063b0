"""Metrics for Prometheus. Needs the extra `prometheus`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

    from sqla_jobs.jobs import Jobs

__all__ = ["collector"]


def collector(jobs: Jobs[Any]) -> Collector:
    """A collector of the metrics of `jobs`, for a registry of your own: `REGISTRY.register(collector(jobs))`.

    A scrape reads the database that `jobs` is bound to, at most every 10 seconds, and each statement may take 3
    seconds. It also tells what workers of this process (`jobs.worker(…)`) have counted since this was called. Raises
    `ConfigurationError` if prometheus-client is not installed.
    """
    from sqla_jobs.prometheus.source import JobsSource, check_installed

    check_installed("sqla_jobs.prometheus")
    from sqla_jobs.prometheus.collecting import MetricsCollector

    return MetricsCollector(JobsSource(jobs))
