"""What is loaded of OpenTelemetry, and when."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_nothing_is_loaded_unless_it_is_asked_for() -> None:
    program = (
        "import sys, sqla_jobs.testing; from sqla_jobs import Jobs; import sqla_jobs.worker, sqla_jobs.clock; "
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_without_the_api_the_remedy_is_named() -> None:
    program = "import sys; sys.modules['opentelemetry'] = None; import sqla_jobs.opentelemetry"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.endswith("pip install 'sqla-jobs[opentelemetry]'\n")
