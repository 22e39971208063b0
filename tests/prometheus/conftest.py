"""A worker that serves metrics, and what it answers."""

from __future__ import annotations

import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import NamedTuple
from uuid import uuid4

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sqla_jobs.queries.values import Claimed, RunEnd
from sqla_jobs.rules.outcomes import Outcome
from tests.conftest import StartWorker
from tests.helpers import free_port, wait_until


class Answer(NamedTuple):
    """Of an HTTP server; status 0: nobody listens."""

    status: int
    text: str
    kind: str = ""


class Observed(NamedTuple):
    """A worker with a port."""

    process: subprocess.Popen[bytes]
    port: int

    def get(self, path: str) -> Answer:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=20) as answer:
                return Answer(answer.status, answer.read().decode(), answer.headers["Content-Type"])
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.read().decode())
        except urllib.error.URLError:
            return Answer(0, "")


StartObserved = Callable[..., Observed]


@pytest.fixture
def start_observed(start_worker: StartWorker) -> StartObserved:
    """Starts a worker on a port of its own, and waits until it is ready."""

    def start(url: str, *options: str, application: str = "tests.shop:jobs") -> Observed:
        port = free_port()
        options = ("--metrics-port", f"127.0.0.1:{port}", *options)
        found = Observed(start_worker(url, *options, application=application), port)
        wait_until(lambda: found.get("/readyz").status == 200)
        return found

    return start


Samples = dict[tuple[str, ...], float]
"""By the name of a sample and the values of its labels, in the order of their names."""


def parsed(text: str) -> Samples:
    """The samples of an exposition, without those of buckets."""
    return {
        (one.name, *(one.labels[name] for name in sorted(one.labels))): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
        if not one.name.endswith("_bucket")
    }


def end_of(task: str, seconds: float = 0.1, queue: str = "default") -> RunEnd:
    """The end of a run that went well."""
    job = Claimed(1, 1, uuid4(), task, queue, 0, 1, "{}", 1, 25, None, 0.0, None, 0.0)
    return RunEnd(job, Outcome.succeeded(), 1.0, 1.0 + seconds)
