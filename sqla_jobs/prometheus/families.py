"""The metric families. docs/monitoring.md lists them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from operator import add

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from sqla_jobs.rules.outcomes import RunOutcome
from sqla_jobs.runtime.counters import BUCKETS, EMPTY, Histogram, Origin, Totals
from sqla_jobs.runtime.metrics import Figures

OTHER = "other"
"""The label of all names after the first `MOST`."""
MOST = 100
_LONGEST = 200


class Labels:
    """Labels for the first hundred names. A name keeps its label, so a series never changes its meaning."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def __iter__(self) -> Iterator[str]:
        return iter([*self._known.values()])  # a copy, since two scrapes may overlap

    def __getitem__(self, name: str) -> str:
        label = self._known.get(name)
        if label is not None:
            return label
        if len(self._known) >= MOST:
            return OTHER
        return self._known.setdefault(name, name[:_LONGEST])


class RunLabels:
    """Labels for tasks and queues. After the first hundred pairs, the other queues of a task are one label."""

    def __init__(self, tasks: Labels, queues: Labels) -> None:
        self._tasks, self._queues = tasks, queues
        self._known: dict[Origin, Origin] = {}

    def __iter__(self) -> Iterator[Origin]:
        return iter([*self._known.values()])

    def __getitem__(self, origin: Origin) -> Origin:
        label = self._known.get(origin)
        if label is not None:
            return label
        task, queue = self._tasks[origin[0]], OTHER
        if task == OTHER or len(self._known) >= MOST:
            return task, queue
        return self._known.setdefault(origin, (task, self._queues[origin[1]]))

    def add(self, origin: Origin) -> None:
        """Give the pair a label while there are any."""
        self[origin]


_BOUNDS = [*(f"{bound:g}" for bound in BUCKETS), "+Inf"]


def of_totals(totals: Totals, labels: RunLabels) -> Iterator[Metric]:
    """Yield the metrics that workers count."""
    served = _served(totals)
    begun = served | totals.waits
    waits, runs = _by_label(begun, labels), _by_label(served | totals.runs, labels)
    yield CounterMetricFamily("sqla_jobs_claims", "Claims that returned jobs.", value=totals.claims)
    yield CounterMetricFamily("sqla_jobs_claimed_jobs", "Jobs that were claimed.", value=totals.claimed)
    yield CounterMetricFamily("sqla_jobs_heartbeats", "Heartbeats that were stored.", value=totals.heartbeats)
    started = CounterMetricFamily("sqla_jobs_runs_started", "Runs that started.", labels=["task", "queue"])
    for origin, histogram in waits.items():
        started.add_metric(origin, sum(histogram[:-1]))
    yield started
    ended = CounterMetricFamily("sqla_jobs_runs_ended", "Runs that ended.", labels=["task", "queue", "outcome"])
    for (origin, outcome), number in _ends(totals, begun, labels).items():
        ended.add_metric([*origin, outcome], number)
    yield ended
    yield _histogram("sqla_jobs_run_seconds", "Duration of runs.", runs)
    yield _histogram("sqla_jobs_wait_seconds", "Time from when jobs were due to the start of their run.", waits)


def of_stalled(number: int) -> Metric:
    """Return the metric of a worker's stalled processes."""
    text = "Processes of the worker that make no progress."
    return GaugeMetricFamily("sqla_jobs_stalled_processes", text, value=number)


def _served(totals: Totals) -> dict[Origin, Histogram]:
    """Return the tasks whose series start at 0; none if there are too many. Then tasks that run get the labels."""
    return dict.fromkeys(sorted(totals.tasks), EMPTY) if len(totals.tasks) <= MOST else {}


def _ends(totals: Totals, begun: Iterable[Origin], labels: RunLabels) -> Mapping[tuple[Origin, str], int]:
    """Return the counts of ends.

    Each served or started task has all outcomes, starting at 0, so that increases are visible.

    Tasks of running jobs of other workers have `lost` at 0, because this worker may rescue and count these jobs.
    """
    found = {(label, str(RunOutcome.lost)): 0 for label in labels}
    for origin in begun:
        found |= {(labels[origin], str(outcome)): 0 for outcome in RunOutcome}
    for (origin, outcome), number in totals.ends.items():
        key = (labels[origin], str(outcome))
        found[key] = found.get(key, 0) + number
    return found


def _by_label(histograms: Mapping[Origin, Histogram], labels: RunLabels) -> dict[Origin, Histogram]:
    found: dict[Origin, Histogram] = {}
    for origin, histogram in histograms.items():
        label = labels[origin]
        found[label] = [*map(sum, zip(found.get(label, EMPTY), histogram, strict=True))]
    return found


def _histogram(name: str, text: str, histograms: Mapping[Origin, Histogram]) -> Metric:
    family = HistogramMetricFamily(name, text, labels=["task", "queue"])
    for origin, histogram in histograms.items():
        buckets = [*zip(_BOUNDS, accumulate(histogram[:-1]), strict=True)]
        family.add_metric(origin, buckets, histogram[-1])
    return family


def of_figures(figures: Figures | None, tasks: Labels, queues: Labels, limits: Labels) -> Iterator[Metric]:
    """Yield the database's metrics; only `sqla_jobs_database_up` if the database does not answer."""
    is_up = [((), float(figures is not None))]
    yield _gauge(
        "sqla_jobs_database_up", "1 if the database could be read, else 0, and its metrics are missing.", (), is_up
    )
    if figures is not None:
        yield from _of_queues(figures, queues)
        yield _gauge(
            "sqla_jobs_task_jobs",
            "Jobs by task and state, up to a bound.",
            ("task", "state"),
            [((tasks[task], state), number) for (state, task), number in figures.jobs.items()],
        )
        yield from _of_limits(figures, limits)
        yield from _of_processes(figures)


def _of_queues(figures: Figures, queues: Labels) -> Iterator[Metric]:
    found = [(queues[one.name], one) for one in figures.queues]
    yield _gauge(
        "sqla_jobs_queue_jobs",
        "Jobs by queue and state, up to a bound. Claimed jobs have not started.",
        ("queue", "state"),
        [
            ((queue, state), number)
            for queue, one in found
            for state, number in (
                ("queued", one.queued.number),
                ("scheduled", one.scheduled.number),
                ("blocked", one.blocked.number),
                ("running", one.running),
                ("claimed", one.claimed),
            )
        ],
    )
    yield _gauge(
        "sqla_jobs_queue_oldest_wait_seconds",
        "Time since the oldest queued job was due.",
        ("queue",),
        [((queue,), one.oldest_wait or 0.0) for queue, one in found],
        fold=max,
    )
    yield _gauge(
        "sqla_jobs_queue_paused",
        "1 if the queue is paused, else 0.",
        ("queue",),
        [((queue,), float(one.paused)) for queue, one in found],
        fold=max,
    )


def _of_limits(figures: Figures, limits: Labels) -> Iterator[Metric]:
    found = [
        ((limits[one.name], one.kind, "all" if one.key is None else "each_key"), one)
        for one in figures.limits
        if one.most is not None
    ]
    names = ("limit", "kind", "scope")
    most = "Running jobs, or starts in its period, that a limit allows."
    used = "Running jobs behind a limit, or the starts in its period."
    yield _gauge("sqla_jobs_limit_max", most, names, [(labels, one.most or 0) for labels, one in found])
    known = [(labels, one.used) for labels, one in found if one.used is not None]
    yield _gauge("sqla_jobs_limit_used", used, names, known)
    waiting = [(labels, one.waiting.number) for labels, one in found]
    yield _gauge("sqla_jobs_limit_waiting_jobs", "Queued jobs behind a limit, up to a bound.", names, waiting)


def _of_processes(figures: Figures) -> Iterator[Metric]:
    yield _gauge(
        "sqla_jobs_processes",
        "Registered workers and clocks. Dead: without a heartbeat for the whole lease.",
        ("kind", "state"),
        [
            ((kind, state), of_kind.get(kind, 0))
            for state, of_kind in (("alive", figures.alive), ("dead", figures.dead))
            for kind in ("worker", "clock")
        ],
    )
    yield _gauge(
        "sqla_jobs_heartbeat_age_seconds",
        "Age of the oldest last heartbeat of live processes.",
        ("kind",),
        [((kind,), age) for kind, age in figures.oldest_heartbeat.items()],
    )


_Row = tuple[tuple[str, ...], float]


def _gauge(
    name: str, text: str, labels: Sequence[str], rows: Iterable[_Row], *, fold: Callable[[float, float], float] = add
) -> Metric:
    """Return a gauge. Rows with equal labels, such as "other", are folded into one."""
    folded: dict[tuple[str, ...], float] = {}
    for key, value in rows:
        folded[key] = fold(folded[key], value) if key in folded else value
    family = GaugeMetricFamily(name, text, labels=labels)
    for key, value in folded.items():
        family.add_metric(key, value)
    return family
