"""Followers do not poll here, as workers do not: what waits for a poll hangs."""

from __future__ import annotations

from typing import Any

import pytest

from sqla_jobs import Jobs
from sqla_jobs.following import hub
from tests.following.application import jobs


@pytest.fixture
def application() -> Jobs[Any]:
    return jobs


@pytest.fixture(autouse=True)
def no_polls_of_followers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "POLL", 3600.0)
    monkeypatch.setattr(hub, "UNHEARD", 3600.0)
