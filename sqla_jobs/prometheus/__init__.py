"""Metrics for Prometheus. Needs the extra `prometheus`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sqla_jobs.errors import ConfigurationError

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

    from sqla_jobs.jobs import Jobs

__all__ = ["collector"]


def collector(jobs: Jobs[Any] | Mapping[str, Jobs[Any]]) -> Collector:
    """Return a collector of the metrics of `jobs`, for a registry: `REGISTRY.register(collector(jobs))`.

    - `jobs`: a `Jobs`, or a mapping such as `{"shop": jobs, "billing": others}`, whose keys become the label
      `application`. A registry accepts only one such collector.

    A scrape reads the database that `jobs` is bound to, at most every 10 seconds, and each statement may take 3
    seconds. The collector also shows the counters of this process's workers (`jobs.worker(…)`), from this call on.

    Raises `ConfigurationError` if prometheus-client is not installed, or if `jobs` is anything else or an empty
    mapping.
    """
    from sqla_jobs.jobs import Jobs
    from sqla_jobs.prometheus.source import JobsSource, check_installed

    check_installed("sqla_jobs.prometheus")
    from sqla_jobs.prometheus.collecting import MetricsCollector, NamedCollectors

    for one in jobs.values() if isinstance(jobs, Mapping) else [jobs]:
        if not isinstance(one, Jobs):
            raise ConfigurationError(f'collector() takes a Jobs, or several by name, {{"shop": jobs}}, got {one!r:.60}')
    if not isinstance(jobs, Mapping):
        return MetricsCollector(JobsSource(jobs))
    if not jobs:
        raise ConfigurationError('collector({}) collects nothing: name at least one Jobs, {"shop": jobs}')
    return NamedCollectors({name: MetricsCollector(JobsSource(one)) for name, one in jobs.items()})
