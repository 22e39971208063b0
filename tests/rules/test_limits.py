"""Limits as they are declared, and the gates by which jobs, statements and people refer to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from sqla_jobs import ConcurrencyLimit, DeclarationError, RateLimit
from sqla_jobs.rules.keys import KeyOf
from sqla_jobs.rules.limits import (
    Gate,
    Limit,
    gates_of,
    key_text,
)

ARGUMENTS = {"account": 17, "to": "ada@example.com"}
ADA = "sha256:c525d356ee379bcf0bc280eab6d3a94fb85f7905"
"""As it is stored: another hash of the same key would be another gate."""


def gates(*limits: Limit, fair_by: KeyOf | None = None, sensitive: str = "", task: str = "send") -> tuple[Gate, ...]:
    return gates_of(task, task, limits, fair_by, ARGUMENTS, frozenset(sensitive.split()))


def domain(arguments: Mapping[str, Any]) -> object:
    return arguments["to"].partition("@")[2]


@pytest.mark.parametrize(
    ("declare", "named"),
    [
        (lambda: ConcurrencyLimit(-1), "-1"),
        (lambda: ConcurrencyLimit(1_000_001), "1000001"),
        (lambda: ConcurrencyLimit(1, key="to", ordered="held"), "'held'"),  # type: ignore[call-overload]
        (lambda: ConcurrencyLimit(2, key="to", ordered=True), "ordered"),  # type: ignore[call-overload]
        (lambda: ConcurrencyLimit(1, ordered="hold"), "key="),  # type: ignore[call-overload]
        (lambda: RateLimit(-1, per=1), "-1"),
        (lambda: RateLimit(10_001, per=1), "10001"),
        (lambda: RateLimit(5, per=0.5), "per .*0.5"),
        (lambda: RateLimit(5, per=86401), "per .*86401"),
        (lambda: RateLimit(20, per=2, burst=21), "burst .*21"),
        (lambda: RateLimit(0, per=2, burst=2), "burst .*2"),
        (lambda: gates(*(RateLimit(1, per=1, name=name) for name in "abcd")), "send has 4 limits"),
        (lambda: gates(ConcurrencyLimit(1, key=["to", "cc"])), "'cc'"),
        (lambda: gates(RateLimit(1, per=1, key=[])), r"key=\[\]"),
        (lambda: gates(fair_by=[]), r"fair_by=\[\]"),
        (lambda: gates(ConcurrencyLimit(1, key=5)), "key .*5"),  # type: ignore[call-overload]
        (lambda: gates(ConcurrencyLimit(1), ConcurrencyLimit(2, name="send")), "name="),
        (lambda: gates(*(ConcurrencyLimit(1, key=key, name=key, ordered=True) for key in ARGUMENTS)), "ordered"),
        (lambda: gates(RateLimit(1, per=1, name="a=b")), "'a=b'"),
        (lambda: gates(task="a=b", fair_by="to"), "'a=b'"),
        (lambda: gates(RateLimit(1, per=1, name="é" * 101)), "name="),
    ],
)
def test_a_limit_that_cannot_be_is_refused(declare: Callable[[], object], named: str) -> None:
    with pytest.raises(DeclarationError, match=named):
        declare()


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (17, "17"),
        (17.0, "17"),
        (None, "null"),
        ([True, 2.0, "é"], r'[true,2,"\u00e9"]'),
        ({"b": 1, "a": 2}, '{"a":2,"b":1}'),
        ("17", '"17"'),
        ("x" * 118, f'"{"x" * 118}"'),
        ("x" * 119, "sha256:bb0d1701c6428f6e753666b7d07191a2835d9347"),
    ],
)
def test_equal_keys_have_one_text_of_at_most_120_characters(key: object, text: str) -> None:
    assert key_text(key) == text


class TestSensitiveArguments:
    @pytest.mark.parametrize(
        ("key", "sensitive", "hides"),
        [
            ("to", "to", True),
            ("account", "to", False),
            (domain, "to", True),
            (domain, "", False),
            (None, "to", False),
        ],
    )
    def test_a_key_that_may_show_one_is_hashed(self, key: KeyOf | None, sensitive: str, hides: bool) -> None:
        for gate in gates(ConcurrencyLimit(1, key=key), fair_by=key, sensitive=sensitive):
            assert (gate.hides, gate.is_hidden) == (hides, hides)
            assert ("=sha256:" in gate.of(ARGUMENTS)) == hides

    @pytest.mark.parametrize(
        ("key", "shown", "hashed"),
        [
            ("ada@example.com", '"ada@example.com"', ADA),
            (17, "17", "sha256:4523540f1504cd17100c4835e85b7eefd4991158"),
            (ADA, ADA, ADA),  # as people see it
        ],
    )
    def test_the_gate_of_a_key_is_found_by_the_key_and_by_its_hash(self, key: object, shown: str, hashed: str) -> None:
        for sensitive, text in (("", shown), ("to", hashed)):
            (gate,) = gates(ConcurrencyLimit(1, key="to"), sensitive=sensitive)
            assert gate.of_key(key) == f"#send={text}"
