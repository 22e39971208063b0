"""Encryption is tested with `tests.encryption.shop`, whose keys are in the environment."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from typing import Any

import pytest

from sqla_jobs import Jobs
from tests.encryption import shop

NEW, OLD, OTHER = (urlsafe_b64encode(name.encode() * 32).decode() for name in ("n", "o", "x"))


@pytest.fixture
def application(monkeypatch: pytest.MonkeyPatch) -> Jobs[Any]:
    monkeypatch.setenv("SQLA_JOBS_KEYS", OLD)
    shop.seen.clear()
    shop.charged.clear()
    return shop.jobs
