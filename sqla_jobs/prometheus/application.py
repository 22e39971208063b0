"""The application's own metrics, which its code counts with prometheus-client in a worker's processes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from prometheus_client import multiprocess
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from sqla_jobs.errors import ConfigurationError
from sqla_jobs.prometheus.source import DIRECTORY
from sqla_jobs.rules.error_text import message_of

log: logging.Logger = logging.getLogger("sqla_jobs.worker")

_multiprocess: Any = multiprocess  # without annotations


class Processes(Protocol):
    """A worker's processes. Any thread may call it."""

    ended: Callable[[int], None]
    """Called with the pid of a process that has ended."""

    def application_metrics(self) -> str | None:
        """Return the metrics of the only process, in Prometheus's text format. None if there are several."""
        ...


class ApplicationCollector(Collector):
    """Collects the application's metrics, except those of the families in `ours`."""

    def __init__(self, processes: Processes, ours: Collection[str]) -> None:
        """Prepare to collect. Raises `ConfigurationError` if PROMETHEUS_MULTIPROC_DIR is not a directory."""
        self._ours = ours
        self._processes = processes
        self._directory = os.environ.get(DIRECTORY)
        if self._directory is None:
            return
        if not Path(self._directory).is_dir():
            raise ConfigurationError(
                f"{DIRECTORY}={self._directory} is not a directory: create it before the worker starts, and empty"
            )
        processes.ended = self._forget

    def collect(self) -> Iterable[Metric]:
        """Return the metrics; none if they cannot be read, so that the worker's own metrics are still shown."""
        try:
            return [family for family in self._families() if family.name not in self._ours]
        except Exception as error:  # noqa: BLE001 - text or files of the application
            log.warning("cannot read the metrics of the application: %s", message_of(error))
            return []

    def _families(self) -> Iterable[Metric]:
        found: Iterable[Metric]
        if self._directory is None:
            found = text_string_to_metric_families(self._processes.application_metrics() or "")
        else:
            found = _multiprocess.MultiProcessCollector(None, self._directory).collect()
        return found

    def _forget(self, pid: int) -> None:
        """Remove the gauges that count only while their process lives."""
        with suppress(OSError):
            _multiprocess.mark_process_dead(pid, self._directory)
