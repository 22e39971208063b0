"""The dashboard, the alerts and the page about metrics name only metrics that are exported."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import yaml

from sqla_jobs.prometheus.families import Labels, RunLabels, of_figures, of_stalled, of_totals
from sqla_jobs.rules.wording import Count
from sqla_jobs.runtime.counters import Counters
from sqla_jobs.runtime.figures import Figures, LimitStatus, QueueStatus
from tests.conftest import ROOT
from tests.prometheus.conftest import end_of

PAGE = ROOT.joinpath("docs/monitoring.md").read_text(encoding="utf-8")
DASHBOARD = json.loads(ROOT.joinpath("docs/grafana-dashboard.json").read_text(encoding="utf-8"))
ALERTS = yaml.safe_load(ROOT.joinpath("docs/alerts.yml").read_text(encoding="utf-8"))
QUEUE = QueueStatus(
    name="default",
    queued=Count(1),
    scheduled=Count(1),
    blocked=Count(1),
    running=1,
    claimed=1,
    oldest_wait=1.0,
    paused=False,
    paused_until=None,
    pause_reason=None,
    is_served=True,
    per_minute=0,
    paused_at=None,
    paused_by=None,
)
LIMIT = LimitStatus(
    gate="%mail",
    name="mail",
    kind="rate",
    key=None,
    tasks=[],
    running=None,
    rate=5,
    per=1.0,
    hold=False,
    declared=None,
    set_at=None,
    set_by=None,
    set_reason=None,
    changed_at=datetime.now(UTC),
    used=1,
    waiting=Count(1),
    next_at=None,
)
FIGURES = Figures(
    [QUEUE],
    {("queued", "mark"): 1},
    set(),
    [LIMIT],
    {"worker": 1},
    {},
    {"worker": 1.0},
)


def exported() -> dict[str, tuple[str, set[str]]]:
    """By name the type and the labels of each metric, as the page has them."""
    counters = Counters()
    counters.is_wanted = True
    counters.begun("mark", "default", 1.0)
    counters.ended([end_of("mark")])
    names = Labels(), Labels(), Labels()
    runs = of_totals(counters.totals(), RunLabels(*names[:2]))
    families = [*runs, of_stalled(0), *of_figures(FIGURES, *names)]
    return {
        f"{one.name}_total" if one.type == "counter" else one.name: (
            one.type,
            {label for sample in one.samples for label in sample.labels} - {"le"},
        )
        for one in families
    }


def series() -> set[str]:
    """The names that expressions may use."""
    histograms = {name for name, (kind, _) in exported().items() if kind == "histogram"}
    parts = {f"{name}_{part}" for name in histograms for part in ("bucket", "sum", "count")}
    return (exported().keys() - histograms) | parts


def labels_in(expression: str) -> set[str]:
    """Those by which it groups or selects, without the ones that Prometheus adds."""
    grouped = re.findall(r"by \(([^)]*)\)", expression)
    selected = re.findall(r"[{,]\s*(\w+)\s*=", expression)
    return {name.strip() for names in grouped for name in names.split(",")} | set(selected) - {"job", "le"}


def strings(found: Any) -> Iterator[str]:
    """All strings in a document."""
    if isinstance(found, str):
        yield found
    elif isinstance(found, list | dict):
        for one in found.values() if isinstance(found, dict) else found:
            yield from strings(one)


@pytest.mark.parametrize("document", [DASHBOARD, ALERTS], ids=["dashboard", "alerts"])
def test_a_document_uses_only_what_is_exported(document: Any) -> None:
    used = {name for text in strings(document) for name in re.findall(r"\bsqla_jobs_\w+", text)}
    assert len(used) > 7
    assert used - series() == set()
    known = {label for _, labels in exported().values() for label in labels} | {"instance", "job", "le"}
    assert {label for text in strings(document) if "sqla_jobs_" in text for label in labels_in(text)} - known == set()


def test_the_page_lists_every_metric_with_its_type_and_labels() -> None:
    rows = re.findall(r"^\| `(sqla_jobs_\w+)` \| (\w+) \|([^|]*)\|", PAGE, re.MULTILINE)
    listed = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert listed == exported()
