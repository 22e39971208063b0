"""The collector, as prometheus-client wants it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from sqla_jobs.prometheus.families import Labels, of_figures, of_stalled, of_totals
from sqla_jobs.prometheus.source import Source
from sqla_jobs.runtime.counters import Totals
from sqla_jobs.runtime.figures import Figures

_NOTHING = Figures([], {}, [], {}, {}, {})


class MetricsCollector(Collector):
    """Asks its source at each scrape."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._tasks, self._queues, self._limits = Labels(), Labels(), Labels()

    def collect(self) -> Iterator[Metric]:
        """All metrics, now."""
        yield from of_totals(self._source.totals(), self._tasks)
        if (stalled := self._source.stalled()) is not None:
            yield of_stalled(stalled)
        figures = self._source.figures()
        if figures is not None or self._source.can_ask():
            yield from of_figures(figures, self._tasks, self._queues, self._limits)

    def describe(self) -> Iterator[Metric]:
        """Their names, for a registry: nothing is read for that."""
        yield from of_totals(Totals(), Labels())
        yield of_stalled(0)
        yield from of_figures(_NOTHING, Labels(), Labels(), Labels())


class NamedCollectors(Collector):
    """Those of several applications as one, with a label that names the application: a family may not come twice."""

    def __init__(self, collectors: Mapping[str, MetricsCollector]) -> None:
        self._collectors = dict(collectors)

    def collect(self) -> Iterable[Metric]:
        """All metrics, now."""
        return _merged((name, metric) for name, one in self._collectors.items() for metric in one.collect())

    def describe(self) -> Iterable[Metric]:
        """Their names, for a registry: nothing is read for that."""
        return _merged((name, metric) for name, one in self._collectors.items() for metric in one.describe())


def _merged(named: Iterable[tuple[str, Metric]]) -> Iterable[Metric]:
    families: dict[str, Metric] = {}
    for name, metric in named:
        family = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
        family.samples += [one._replace(labels={"application": name, **one.labels}) for one in metric.samples]
    return families.values()
