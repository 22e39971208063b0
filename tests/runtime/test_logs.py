"""Lines of the log as JSON."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from datetime import UTC, datetime

from tests.conftest import ROOT

PROGRAM = """
import logging
from sqla_jobs.runtime.logs import LogOptions

LogOptions(form="json").set_up("shop:jobs")
log = logging.getLogger("shop.orders")
log.info("two\\nlines and %s", "\\ud800 half a letter")
try:
    int("x")
except ValueError:
    log.exception("it failed", extra={"job_id": 17, "other": "field"})
logging.getLogger("elsewhere").info("not told")
"""


def test_each_line_is_an_object_with_a_moment_in_utc_and_an_exception_is_a_field() -> None:
    before = datetime.now(UTC)
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True)
    first, second = map(json.loads, done.stderr.splitlines())
    assert before.replace(microsecond=0) <= datetime.fromisoformat(first["time"]) <= datetime.now(UTC)
    assert first["time"].endswith("+00:00")
    assert (first["level"], first["logger"], first["thread"]) == ("INFO", "shop.orders", "MainThread")
    assert first["message"].startswith("two\nlines and ")
    assert first.keys() == {"time", "level", "logger", "process", "thread", "message"}
    assert (second["level"], second["message"], second["job_id"]) == (logging.getLevelName(40), "it failed", 17)
    assert second["error_type"] == "ValueError"
    assert second["traceback"].splitlines()[0] == "Traceback (most recent call last):"
    assert second.keys() - first.keys() == {"job_id", "error_type", "traceback"}
