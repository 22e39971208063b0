"""How long ended jobs are kept: what a task and a worker may say, and the rules that follow from both."""

from __future__ import annotations

from typing import Any

import pytest

from sqla_jobs.rules.retention import OwnRetention, Rule, rules

PLAIN = (["plain"], OwnRetention({}))
SHORT = (["short", "brief"], OwnRetention({"succeeded": 60, "failed": None}))
EQUAL = (["equal"], OwnRetention({"succeeded": 3600}))
LONG = (["long", "old_name"], OwnRetention({"succeeded": 9000}))
LONG_TOO = (["long_too"], OwnRetention({"succeeded": 9000}))
FOREVER = (["forever"], OwnRetention({"succeeded": None}))


@pytest.mark.parametrize(
    ("worker", "tasks", "expected"),
    [
        ({"succeeded": 3600}, [], [Rule("succeeded", 3600)]),
        ({"succeeded": 3600}, [PLAIN, EQUAL], [Rule("succeeded", 3600)]),
        (
            {"succeeded": 3600, "failed": 7200, "audit": 5},
            [PLAIN, SHORT],
            [
                Rule("succeeded", 3600),  # which covers what is kept for less
                Rule("succeeded", 60, only=("short", "brief")),
                Rule("failed", 7200, others=("short", "brief")),
            ],
        ),
        (
            {"succeeded": 3600},
            [PLAIN, LONG, FOREVER, LONG_TOO],
            [
                Rule("succeeded", 3600, others=("long", "old_name", "forever", "long_too")),
                Rule("succeeded", 9000, only=("long", "old_name", "long_too")),
            ],
        ),
        ({}, [FOREVER, SHORT], [Rule("succeeded", 60, only=("short", "brief"))]),  # the worker keeps all forever
    ],
)
def test_what_is_deleted_when(worker: dict[str, float], tasks: Any, expected: list[Rule]) -> None:
    assert [*rules(worker, tasks)] == expected
