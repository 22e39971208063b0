"""How long ended jobs are kept: what a task and a worker may say, and the rules that follow from both."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from sqla_jobs.errors import ConfigurationError, DeclarationError
from sqla_jobs.rules.retention import OwnRetention, Rule, own_retention, rules, seconds_kept

DAY = 86400.0
ALL = {"succeeded": 7 * DAY, "cancelled": 7 * DAY, "failed": 30 * DAY, "audit": 365 * DAY, "ticks": 30 * DAY}


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("erase", "erase"),
        ({"failed": "erase"}, "erase"),
        ({"ended": 5}, "ended"),
        (-1, "-1"),
    ],
)
def test_what_a_task_cannot_say_is_refused(given: object, named: str) -> None:
    with pytest.raises(DeclarationError, match=named):
        own_retention("send", given)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({}, ALL),
        ({"failed": timedelta(hours=1), "ticks": 0}, ALL | {"failed": 3600, "ticks": 0}),
        ({"succeeded": None}, {name: seconds for name, seconds in ALL.items() if name != "succeeded"}),
    ],
)
def test_a_worker_has_the_defaults_unless_it_says_otherwise(given: Any, kept: dict[str, float]) -> None:
    assert seconds_kept(given) == kept


@pytest.mark.parametrize(("given", "named"), [({"audits": 5}, "audits"), ({"audit": "7d"}, "7d")])
def test_what_a_worker_cannot_say_is_refused(given: Any, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        seconds_kept(given)


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
