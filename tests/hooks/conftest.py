"""Hooks are tested with `tests.hooked_shop`."""

from __future__ import annotations

from typing import Any

import pytest

from sqla_jobs import Jobs
from tests import hooked_shop


@pytest.fixture
def application() -> Jobs[Any]:
    return hooked_shop.jobs
