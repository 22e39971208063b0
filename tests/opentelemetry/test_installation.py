"""What is loaded of OpenTelemetry, and when."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import ROOT


def test_nothing_is_loaded_unless_it_is_asked_for() -> None:
    program = (
        "import sys, sqla_jobs.testing; from sqla_jobs import Jobs; import sqla_jobs.worker, sqla_jobs.clock; "
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_api_alone_is_loaded() -> None:
    program = "import sys, sqla_jobs.opentelemetry; print('opentelemetry.sdk' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
