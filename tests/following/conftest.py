"""The application of these tests."""

from __future__ import annotations

from typing import Any

import pytest

from sqla_jobs import Jobs
from tests.following.application import jobs


@pytest.fixture
def application() -> Jobs[Any]:
    return jobs
