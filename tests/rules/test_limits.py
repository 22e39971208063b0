"""Limits as they are declared, and the gates by which jobs, statements and people refer to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from sqla_jobs import ConcurrencyLimit, DeclarationError, RateLimit
from sqla_jobs.rules.keys import KeyOf
from sqla_jobs.rules.limits import (
    Gate,
    Limit,
    gates_of,
    holds_a_place,
    key_text,
    named_on_command_line,
    ordered_gate,
    spell_alike,
    split_between,
    titled,
    worded,
)

ARGUMENTS = {"account": 17, "to": "ada@example.com"}
ADA = "sha256:c525d356ee379bcf0bc280eab6d3a94fb85f7905"
"""As it is stored: another hash of the same key would be another gate."""


def gates(*limits: Limit, fair_by: KeyOf | None = None, sensitive: str = "", task: str = "send") -> tuple[Gate, ...]:
    return gates_of(task, task, limits, fair_by, ARGUMENTS, frozenset(sensitive.split()))


def domain(arguments: Mapping[str, Any]) -> object:
    return arguments["to"].partition("@")[2]


@pytest.mark.parametrize(
    ("limit", "values", "told"),
    [
        (ConcurrencyLimit(1_000_000), {"running": 1_000_000}, "1,000,000 at once"),
        (ConcurrencyLimit(1, key="to", ordered=True), {"running": 1}, "1 at once"),
        (ConcurrencyLimit(1, key="to", ordered="hold"), {"running": 1, "hold": True}, "1 at once, held by failures"),
        (RateLimit(0, per=1, burst=1), {"rate": 0, "per": 1.0, "burst": 1}, "0 in 1 s, 1 close together"),
        (RateLimit(7, per=1.5, burst=7), {"rate": 7, "per": 1.5, "burst": 7}, "7 in 1.5 s, 7 close together"),
    ],
)
def test_a_limit_has_the_values_of_its_row_and_is_told_in_words(
    limit: Limit, values: dict[str, Any], told: str
) -> None:
    assert limit.values == {"running": None, "rate": None, "per": None, "hold": False, **values}
    assert worded(limit.values) == told


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
    ("limits", "fair_by", "found"),
    [
        ([], None, []),
        ([ConcurrencyLimit(3)], None, ["#send"]),
        ([RateLimit(5, per=1, name="é" * 100)], None, ["%" + "é" * 100]),
        ([ConcurrencyLimit(1, key="account", ordered=True)], None, ["!send=17"]),
        ([ConcurrencyLimit(1, key="account", name="all", ordered="hold")], None, ["!all=17"]),
        ([RateLimit(5, per=1, key=["to", "account"])], None, ['%send=["ada@example.com",17]']),
        ([ConcurrencyLimit(2, key=domain)], None, ['#send="example.com"']),
        (
            [ConcurrencyLimit(1, key="account"), RateLimit(5, per=1), ConcurrencyLimit(9, name="zone")],
            "to",
            ["#zone", "%send", "#send=17", '~send="ada@example.com"'],
        ),
    ],
)
def test_a_job_has_a_gate_for_each_limit_the_most_widely_shared_first(
    limits: Sequence[Limit], fair_by: KeyOf | None, found: list[str]
) -> None:
    made = gates(*limits, fair_by=fair_by)
    assert [gate.of(ARGUMENTS) for gate in made] == found
    assert all((gate.limit in limits) == (gate.row[0] != "~") for gate in made)


def test_an_argument_that_a_job_does_not_have_is_a_key_too() -> None:
    limits = ConcurrencyLimit(1, key="account"), RateLimit(1, per=1, key=["account", "to"])
    assert [gate.of({}) for gate in gates(*limits)] == ["#send=null", "%send=[null,null]"]


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

    @pytest.mark.parametrize(
        ("sensitive", "gate", "misspelt"),
        [
            ("to", '#send="ada@example.com"', True),
            ("to", f"#send={ADA}", False),
            ("to", '#sent="ada@example.com"', False),
            ("", '#send="ada@example.com"', False),
        ],
    )
    def test_a_plain_key_of_older_code_is_noticed(self, sensitive: str, gate: str, misspelt: bool) -> None:
        (mine,) = gates(ConcurrencyLimit(1, key="to"), sensitive=sensitive)
        assert mine.misspells(gate) == misspelt

    def test_tasks_that_share_a_limit_hash_its_keys_if_one_of_them_does(self) -> None:
        mail, text = (RateLimit(5, per=60, key="to", name=name) for name in ("mail", "text"))
        found = [*gates(mail, text), *gates(mail, sensitive="to")]
        spell_alike(found)
        assert [gate.of(ARGUMENTS) for gate in found] == [f"%mail={ADA}", '%text="ada@example.com"', f"%mail={ADA}"]

    @pytest.mark.parametrize(
        ("declared", "tasks", "told"),
        [
            (None, ["news"], None),
            ({"hashed_by": ["reset"]}, ["reset"], None),
            ({"hashed_by": ["reset", "gone"]}, ["reset", "news"], ("reset hashes", "news")),
            ({"hashed_by": ["b", "a"]}, ["d", "b", "c", "a"], ("a, b hash", "c, d")),
        ],
    )
    def test_a_limit_whose_keys_have_two_spellings_is_told_with_its_tasks(
        self, declared: Mapping[str, Any] | None, tasks: list[str], told: tuple[str, str] | None
    ) -> None:
        said = split_between(declared, tasks)
        assert (said is None) == (told is None)
        assert all(f" {names} " in f" {said}" for names in told or ())


@pytest.mark.parametrize(
    ("gate", "title", "command", "has_places"),
    [
        ("#stripe", "limit stripe", "stripe", True),
        ("#mail.send=", "limit mail.send of each key", "mail.send", True),
        ('!mail="a=b"', 'limit mail of key "a=b"', "mail --key '\"a=b\"'", True),
        ("%mail.send=17", "rate mail.send of key 17", "mail.send --key 17", False),
        ("@mail", "limit of queue mail", "--queue mail", False),
        ("@the mail", "limit of queue the mail", "--queue 'the mail'", False),
    ],
)
def test_a_gate_is_told_to_people_with_its_kind_and_named_to_the_command(
    gate: str, title: str, command: str, has_places: bool
) -> None:
    assert titled(gate) == title
    assert named_on_command_line(gate) == command
    assert holds_a_place(gate) == has_places


@pytest.mark.parametrize(
    ("listed", "ordered"), [([], None), (["#a", "~a=1"], None), (["#!", "%a", "!a=1", "~a=1"], "!a=1")]
)
def test_the_gate_that_orders_jobs_is_the_one_with_an_exclamation_mark(listed: list[str], ordered: str | None) -> None:
    assert ordered_gate(listed) == ordered
