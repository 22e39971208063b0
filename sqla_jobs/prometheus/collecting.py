"""The collectors for prometheus-client."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from sqla_jobs.prometheus.families import Labels, RunLabels, of_figures, of_stalled, of_totals
from sqla_jobs.prometheus.source import Source
from sqla_jobs.runtime.counters import Totals
from sqla_jobs.runtime.metrics import Figures

_NOTHING = Figures([], {}, set(), [], {}, {}, {})


class MetricsCollector(Collector):
    """Collects the metrics of one source at each scrape."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._tasks, self._queues, self._limits = Labels(), Labels(), Labels()
        self._runs = RunLabels(self._tasks, self._queues)

    def collect(self) -> Iterator[Metric]:
        """Return all metrics."""
        yield from of_totals(self._source.totals(), self._runs)
        if (stalled := self._source.stalled()) is not None:
            yield of_stalled(stalled)
        figures = self._source.figures()
        if any(figures.values()) or self._source.can_ask():
            of_each = {name: self._of(one) for name, one in figures.items()}
            yield from of_each[""] if "" in of_each else _merged(of_each)
        for origin in sorted({origin for one in figures.values() if one is not None for origin in one.running}):
            self._runs.add(origin)  # from the next scrape on, its `lost` is 0, so that a loss is an increase

    def _of(self, figures: Figures | None) -> Iterator[Metric]:
        return of_figures(figures, self._tasks, self._queues, self._limits)

    def describe(self) -> Iterator[Metric]:
        """Return the names of the metrics for a registry, without reading the source."""
        yield from of_totals(Totals(), RunLabels(Labels(), Labels()))
        yield of_stalled(0)
        yield from of_figures(_NOTHING, Labels(), Labels(), Labels())


def _merged(of_each: Mapping[str, Iterable[Metric]]) -> Iterable[Metric]:
    """Return one set of families, with the names in `of_each` as the label `shard`."""
    families: dict[str, Metric] = {}
    for name, metrics in of_each.items():
        for metric in metrics:
            family = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
            family.samples += [one._replace(labels={"shard": name, **one.labels}) for one in metric.samples]
    return families.values()
