"""Limits hold while everything goes wrong at once: a short run of the hammer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from sqla_jobs.postgres import LocalServer
from tests.limits.hammer import Hammer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
SECONDS = float(os.environ.get("HAMMER_SECONDS", "7"))


@pytest.fixture
def server() -> Iterator[LocalServer]:
    with LocalServer(durable=True) as server:
        yield server


def hammered(hammer: Hammer) -> None:
    hammer.run(SECONDS)
    left = hammer.drain(90.0)
    print(hammer.counts, hammer.outcomes(), hammer.logs(), sep="\n")
    assert hammer.judge() == []
    assert left == 0
    assert hammer.outcomes()["succeeded"] > 4 * SECONDS
    assert hammer.counts["crash"] == 1


def test_nothing_overshoots_while_workers_are_killed_and_limits_change(server: LocalServer) -> None:
    with ExitStack() as stack:
        hammered(Hammer(stack, server, seed=1))
