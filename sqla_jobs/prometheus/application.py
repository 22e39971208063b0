"""The application's own metrics, which its code counts with prometheus-client in a worker's processes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from prometheus_client import multiprocess
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from sqla_jobs.errors import ConfigurationError
from sqla_jobs.prometheus.source import DIRECTORY
from sqla_jobs.rules.error_text import message_of

log: logging.Logger = logging.getLogger("sqla_jobs.worker")

_multiprocess: Any = multiprocess  # without annotations


class Processes(Protocol):
    """A worker's processes."""

    ended: Callable[[int], None]
    """Called with the pid of a process that has ended."""


class ApplicationCollector(Collector):
    """Collects the application's metrics from the files of its processes."""

    def __init__(self, directory: str, processes: Processes) -> None:
        """Prepare to collect. Raises `ConfigurationError` if `directory` is not a directory."""
        if not Path(directory).is_dir():
            raise ConfigurationError(
                f"{DIRECTORY}={directory} is not a directory: create it before the worker starts, and empty"
            )
        self._directory = directory
        processes.ended = self._forget

    def collect(self) -> Iterable[Metric]:
        """Return the metrics; none if they cannot be read, so that the worker's own metrics are still shown."""
        try:
            return list(_multiprocess.MultiProcessCollector(None, self._directory).collect())
        except Exception as error:  # noqa: BLE001 - files of the application
            log.warning("cannot read the metrics of the application: %s", message_of(error))
            return []

    def _forget(self, pid: int) -> None:
        """Remove the gauges that count only while their process lives."""
        with suppress(OSError):
            _multiprocess.mark_process_dead(pid, self._directory)
