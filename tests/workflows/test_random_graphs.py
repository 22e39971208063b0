"""No random graph breaks a promise, whatever is done to it and its workers: some rounds."""

from __future__ import annotations

import os
import random

import pytest

from tests.workflows.random_graphs import rounds

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SECONDS = float(os.environ.get("GRAPHS_SECONDS", "20"))


def test_random_graphs_break_no_promise(database_url: str) -> None:
    found = [*rounds(database_url, seconds=SECONDS, seed=random.randrange(2, 10**9))]
    assert not found, "\n\n".join(found)
