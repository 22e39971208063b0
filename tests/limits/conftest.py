from __future__ import annotations

from typing import Any

import pytest

from sqla_jobs import Jobs
from tests import limited_shop


@pytest.fixture
def application() -> Jobs[Any]:
    return limited_shop.jobs
