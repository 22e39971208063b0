"""The sources of metrics."""

from __future__ import annotations

from functools import cached_property, partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

from sqla_jobs.errors import ConfigurationError
from sqla_jobs.runtime.counters import Totals
from sqla_jobs.runtime.metrics import ByShard, Cached, Figures

if TYPE_CHECKING:
    from sqla_jobs.jobs import Jobs

DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable with which prometheus-client keeps an application's metrics in files of a directory."""
KEPT = 10.0
"""Seconds for which figures are cached, so that scrapes do not load the database."""
PATIENCE = 5.0
"""Seconds that a scrape waits for the database."""
_OF_SEVERAL = 1.0
"""Seconds that it waits for each of several databases: one that is away must not keep the others' figures."""


class Source(Protocol):
    """The source of metrics. Any thread may call it."""

    def totals(self) -> Totals:
        """Return the counters of workers."""
        ...

    def figures(self) -> ByShard:
        """Return the figures of each database."""
        ...

    def can_ask(self) -> bool:
        """Return whether the source has a database to read."""
        ...

    def stalled(self) -> int | None:
        """Return how many of a worker's processes are making no progress; `None` if that is unknown."""
        ...


class JobsSource:
    """An application's database, and the application's workers in this process."""

    def __init__(self, jobs: Jobs[Any]) -> None:
        self._jobs = jobs
        self._counters = jobs._counters
        self._counters.is_wanted = True

    @cached_property
    def _figures(self) -> dict[str, Cached[Figures]]:
        from sqla_jobs.monitoring.figures import read_briefly

        shards = {name: self._jobs.shard(name) for name in self._jobs.shards}
        return {
            name: Cached(partial(read_briefly, one), seconds=KEPT, patience=_OF_SEVERAL if shards else PATIENCE)
            for name, one in (shards or {"": self._jobs}).items()
        }

    def totals(self) -> Totals:
        return self._counters.totals()

    def figures(self) -> ByShard:
        return {name: cached.get() for name, cached in self._figures.items()}

    def can_ask(self) -> bool:
        return True

    def stalled(self) -> int | None:
        return None  # only a parent process knows


def check_installed(what: str) -> None:
    """Raise `ConfigurationError` if prometheus-client, which `what` needs, is not installed."""
    if find_spec("prometheus_client") is None:
        raise ConfigurationError(
            f"{what} needs prometheus-client, which is not installed: pip install 'sqla-jobs[prometheus]'"
        )
