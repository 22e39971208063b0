"""The dashboard, the alerts and the page about metrics name only metrics that are exported."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from sqlalchemy.orm import Session

import sqla_jobs.prometheus
from sqla_jobs import Jobs
from sqla_jobs.prometheus.families import of_stalled
from tests import limited_shop
from tests.conftest import ROOT
from tests.helpers import wait_until
from tests.limited_shop import jobs

PAGE = ROOT.joinpath("docs/monitoring.md").read_text(encoding="utf-8")
DASHBOARD = json.loads(ROOT.joinpath("docs/grafana-dashboard.json").read_text(encoding="utf-8"))
ALERTS = yaml.safe_load(ROOT.joinpath("docs/alerts.yml").read_text(encoding="utf-8"))
Metrics = dict[str, tuple[str, set[str]]]


@pytest.fixture
def application() -> Jobs[Any]:
    return jobs


@pytest.fixture
def exported(session: Session) -> Metrics:
    """By name the type and the labels of each metric, as the page has them."""
    collector = sqla_jobs.prometheus.collector(jobs)
    limited_shop.rated.enqueue(session, n=1)
    limited_shop.rated.options(delay=3600).enqueue(session, n=2)
    session.commit()
    with jobs.worker(clock=False) as worker:
        wait_until(lambda: worker.runs == 1)
        families = [*collector.collect(), of_stalled(0)]
    return {
        f"{one.name}_total" if one.type == "counter" else one.name: (
            one.type,
            {label for sample in one.samples for label in sample.labels} - {"le"},
        )
        for one in families
    }


def series(exported: Metrics) -> set[str]:
    """The names that expressions may use."""
    histograms = {name for name, (kind, _) in exported.items() if kind == "histogram"}
    parts = {f"{name}_{part}" for name in histograms for part in ("bucket", "sum", "count")}
    return (exported.keys() - histograms) | parts


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
def test_a_document_uses_only_what_is_exported(document: Any, exported: Metrics) -> None:
    used = {name for text in strings(document) for name in re.findall(r"\bsqla_jobs_\w+", text)}
    assert len(used) > 7
    assert used - series(exported) == set()
    known = {label for _, labels in exported.values() for label in labels} | {"instance", "job", "le"}
    assert {label for text in strings(document) if "sqla_jobs_" in text for label in labels_in(text)} - known == set()


def test_the_page_lists_every_metric_with_its_type_and_labels(exported: Metrics) -> None:
    rows = re.findall(r"^\| `(sqla_jobs_\w+)` \| (\w+) \|([^|]*)\|", PAGE, re.MULTILINE)
    listed = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert listed == exported
