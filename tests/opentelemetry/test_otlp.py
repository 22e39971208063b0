"""What a collector receives of worker processes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from sqla_jobs.opentelemetry.metrics import SCHEMA
from tests import traced_shop as shop
from tests.conftest import ROOT, StartWorker
from tests.counting import states
from tests.helpers import run_to_end, wait_until
from tests.receiver import Receiver, receiving

pytestmark = pytest.mark.slow
SHOP = "tests.traced_shop:jobs"
SCOPE = ("sqla_jobs", version("sqla-jobs"), SCHEMA)


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with receiving() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{receiver.server_port}")
        yield receiver


def spans(receiver: Receiver) -> list[Any]:
    requests = map(ExportTraceServiceRequest.FromString, receiver.bodies("/v1/traces"))
    scopes = [scope for one in requests for resource in one.resource_spans for scope in resource.scope_spans]
    assert {(scope.scope.name, scope.scope.version, scope.schema_url) for scope in scopes} <= {SCOPE}
    return sorted((span for scope in scopes for span in scope.spans), key=lambda span: span.name)


def metrics(receiver: Receiver) -> dict[str, int]:
    """The newest totals; of a histogram how many it has counted."""
    requests = map(ExportMetricsServiceRequest.FromString, receiver.bodies("/v1/metrics"))
    scopes = [scope for one in requests for resource in one.resource_metrics for scope in resource.scope_metrics]
    assert {(scope.scope.name, scope.scope.version, scope.schema_url) for scope in scopes} <= {SCOPE}
    return {
        metric.name: sum(point.as_int for point in metric.sum.data_points)
        or sum(point.count for point in metric.histogram.data_points)
        for scope in scopes
        for metric in scope.metrics
    }


def test_a_worker_process_exports_all_that_it_did_before_it_ends(
    database: Engine, database_url: str, session: Session, receiver: Receiver
) -> None:
    shop.orders.enqueue(session, to="ada")
    session.commit()
    command = [sys.executable, "-m", "sqla_jobs.worker", SHOP, "--queues", "default,mail", "--drain"]
    done = run_to_end([*command, "--database-url", database_url], ROOT)
    assert (done.stdout, done.returncode) == ("2 runs\n", 0), done.stderr
    assert [span.name for span in spans(receiver)] == ["process default", "process mail", "send mail"]
    assert metrics(receiver) == {
        "messaging.client.sent.messages": 1,
        "messaging.client.operation.duration": 1,
        "messaging.client.consumed.messages": 2,
        "messaging.process.duration": 2,
    }


def test_a_run_whose_process_was_killed_is_an_error_span_of_another(
    database: Engine, database_url: str, session: Session, start_worker: StartWorker, receiver: Receiver
) -> None:
    worker = start_worker(database_url, application=SHOP)
    shop.dies.enqueue(session, seconds=60)
    session.commit()
    wait_until(lambda: states(database) == {"running": 1})
    os.killpg(worker.pid, signal.SIGKILL)
    start_worker(database_url, "--queues", "other", application=SHOP)
    wait_until(lambda: [span.name for span in spans(receiver)] == ["process default"], timeout=40)
    (span,) = spans(receiver)
    assert span.status.code == span.status.STATUS_CODE_ERROR
    assert "stopped before the job ended" in span.status.message
    assert span.end_time_unix_nano > span.start_time_unix_nano
