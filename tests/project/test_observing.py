"""The pages about traces, trackers and logs: their code is run as it is printed, in processes of its own."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from sqla_jobs.runtime.logs import FIELDS
from tests.conftest import ROOT
from tests.helpers import run_to_end
from tests.project.pages import blocks
from tests.receiver import receiving

pytestmark = pytest.mark.slow
START = """
import os, sys
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session
from shop import Base, Order, jobs, settle
engine = create_engine(os.environ["DATABASE_URL"])
Base.metadata.create_all(engine)
session = Session(engine)
"""


@pytest.fixture
def folder(shop: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with shop.py, and an empty database."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    return shop


def write(folder: Path, page: str) -> None:
    """The modules of a page: its blocks that begin with a name."""
    for block in blocks(ROOT / f"docs/{page}.md", "python"):
        if name := re.match(r"# (\w+\.py)\n", block.code):
            folder.joinpath(name[1]).write_text(block.code, encoding="utf-8")


def run(*arguments: str) -> str:
    """Standard error of a program that ends well."""
    done = run_to_end([sys.executable, *arguments])
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr


def test_the_traces_of_the_docs_reach_a_collector(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, "tracing")
    folder.joinpath("app.py").write_text("import shop_tracing\nfrom shop import jobs\n")
    with receiving() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{receiver.server_port}")
        order = "session.add(order := Order()); settle.enqueue(session, order=order); session.commit()"
        run("-c", f"{START}import shop_tracing; {order}")
        run("-m", "sqla_jobs.worker", "app:jobs", "--drain")
    requests = [ExportTraceServiceRequest.FromString(body) for body in receiver.bodies("/v1/traces")]
    spans = [(one.resource, span) for it in requests for one in it.resource_spans for span in one.scope_spans[0].spans]
    assert [span.name for _, span in spans] == ["send default", "process default"]
    assert spans[1][1].links[0].span_id == spans[0][1].span_id
    assert {(key.key, key.value.string_value) for resource, _ in spans for key in resource.attributes} >= {
        ("service.name", "shop")
    }
    assert receiver.bodies("/v1/metrics")


def test_an_error_tracker_is_told_what_the_docs_say(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, "logs-and-errors")
    folder.joinpath("program.py").write_text(f"""{START}
import shop_errors, time
from sqla_jobs import Cancel
from tenacity import Retrying, wait_fixed

@jobs.task(queue="mail", max_attempts=2, retry=Retrying(wait=wait_fixed(0)))
def fail() -> None:
    raise ValueError("as always")

@jobs.task
def give_up() -> None:
    raise Cancel("not needed")

fail.enqueue(session)
give_up.enqueue(session)
lost = give_up.options(queue="other").enqueue(session)
session.flush()
insert = "INSERT INTO sqla_runs (job_id, attempt, outcome, error, untold_at) VALUES (:id, 1, 'lost', 'killed', now())"
session.execute(text(insert), {{"id": lost.id}})
session.commit()
jobs.worker(["default", "mail"], concurrency=1, bind=engine).drain()
""")
    with receiving() as receiver:
        monkeypatch.setenv("SENTRY_DSN", f"http://key@127.0.0.1:{receiver.server_port}/1")
        run("program.py")
    lines = [json.loads(line) for body in receiver.bodies("/api/1/envelope/") for line in body.splitlines()]
    events = [line for line in lines if "event_id" in line and "level" in line]

    def said(event: dict[str, Any]) -> tuple[Any, ...]:
        text = event["exception"]["values"][0]["value"] if "exception" in event else event["message"]
        return event["level"], text, event["contexts"].get("job", {}).get("attempt")

    assert sorted(map(said, events)) == [
        ("error", "as always", 2),
        ("error", "give_up was lost: killed", None),
        ("warning", "as always", 1),
    ]
    assert {event["transaction"] for event in events if "exception" in event} == {"fail"}


def test_structured_logs_look_as_the_docs_say(folder: Path) -> None:
    write(folder, "logs-and-errors")
    folder.joinpath("app.py").write_text("import shop_logging, shop_mail\nfrom shop import jobs\n")
    folder.joinpath("shop_mail.py").write_text("""
import structlog
from shop import jobs

@jobs.task(max_attempts=1)
def deliver(to: str) -> None:
    structlog.get_logger("shop.mail").warning("delivering", to=to)
    raise ConnectionError("the line is busy")
""")
    enqueue = "shop_mail.deliver.enqueue(session, to='ada@example.com'); session.commit()"
    request = f"with structlog.contextvars.bound_contextvars(request='ab12'): {enqueue}"
    run("-c", f"{START}import structlog, shop_logging, shop_mail\n{request}")
    command = ("-m", "sqla_jobs.worker", "app:jobs", "--drain", "--log-format", "json")
    logged = [json.loads(line) for line in run(*command).splitlines()]
    (shown,) = blocks(ROOT / "docs/logs-and-errors.md", "json")
    found = [line for line in logged if line["logger"] in ("shop.mail", "sqla_jobs.run")]
    assert found[0] | {"time": ""} == json.loads(shown.code) | {"time": ""}
    assert "job 1 deliver attempt 1/1 failed" in found[1]["event"]
    assert found[1]["traceback"].endswith("ConnectionError: the line is busy\n")
    assert (found[1]["outcome"], found[1]["headers"]) == ("failed", {"request": "ab12"})
    assert found[1]["traceback"].startswith("Traceback")
    always = {*FIELDS} - {"shard"}  # there is one database
    assert {*always, "time", "level", "event", "error_type", "traceback"} <= found[1].keys()
