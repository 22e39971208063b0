"""How secrets are found in a text, whatever became of them there."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import pytest

from sqla_jobs.rules.outcomes import Failure
from sqla_jobs.rules.redaction import HIDDEN, MARK, NOTHING, Digits, Secrets, check_depth, is_erased, parse

PEM = "-----BEGIN PRIVATE KEY-----\nMIIEvQxK8zT1/Yq+0a\nPq9Lm2Rf7vBn+/Zk==\n-----END PRIVATE KEY-----\n"
TOKEN = "".join(f"{number:04x}Zk" for number in range(834))[:5000]
TEXTS = {
    "plain": "tr0ub4dor&3",
    "single quotes": "it's'Zk1'quoted''twice",
    "double quotes": 'say "Zk2" \'both\' "',
    "newlines": "first Zk3\nsecond Zk3\r\n\tthird",
    "backslashes": "C:\\new\\Zk4\\table\\\\share\\",
    "PEM": PEM,
    "unicode": "Пароль-Zk5-ключ-é-ß",
    "emoji": "🔑Zk6👩‍👩‍👧‍👦🔒",
    "astral and controls": "Zk7\x7f\x85\u2028𐍈\U000e0041",
    "long token": TOKEN,
    "URL": "https://ada:Zk8pw%2F1@example.com/?a=b+c&token=Zk8/+=",
    "percent": "Zk9 %s %(name)s 100%",
    "braces": "Zk10 {} {0!r} {{x}}",
    "HTML": "<script>alert('Zk11')</script>&amp;&lt;",
    "spaces": "Zk12 correct horse battery staple " * 40,
    "a prefix": "Zk13-prefix",
    "a longer one": "Zk13-prefix-and-more-of-it",
    "JSON": json.dumps({"private_key": "Zk14\nline", "n": [{"x": 'Zk14"q'}]}),
    "base64": base64.b64encode(b"Zk15 in base64, which is text").decode(),
    "trailing newline": "Zk16-secret\n",
    "SQL": "'; DROP TABLE Zk17; --",
}


@pytest.mark.parametrize(
    ("secret", "text", "shown"),
    [
        ("", "nothing ''", "nothing ''"),
        ("ab", "ab abc", "ab abc"),
        ("abc", "abc abcd (abc) x_abc", "*** abcd (***) x_***"),
        ("abcd", "xabcdx", "x***x"),
        (1234, "line 1234 of 12345, 1234.", "line *** of 12345, ***."),
        (12345678, "no12345678x", "no***x"),
        ("abc", "-xabc abcx- abc", "-xabc abcx- ***"),
        (-12.345, "-12.345 x-12.345 -12.345x", "*** x-12.345 -12.345x"),
        ("1.2.3", "v1.2.3b", "v***b"),
        (True, "True true", "True true"),
        (None, "None null", "None null"),
        ("hunter22", "hunter22hunter22", MARK),
        ("aaaaaaaaaaaa-X9", "aaaaaaaaaaaaa-X9", MARK),
        ("line\nfeed", r"'line\nfeed' \\line\\nfeed", r"'***' \\***"),
        ("nancy-secret", r"DOMAIN\nancy-secret", r"DOMAIN\***"),
        ("ada@example.com", "bob@example.com", "bob@example.com"),
        ("0123456789abcdefghij", "0123456789abcde…", "***…"),
        ("0123456789abcdefghij", "0123456789…", "0123456789…"),
        ("0123456789abcdefghij0123456789zz", "… 89abcdefghij0123456789zz", "… ***"),
        ("caf\u00e9 au lait", r"caf\u00e9 au lait caf%C3%A9+au%20lait caf\xe9 au lait", "*** *** ***"),
        ("key-of-\U0001f511", r"key-of-\ud83d\udd11 key-of-\U0001f511", "*** ***"),
        (
            "hunter2-sec",
            "Jsonb({'user': 'ada', 'password': 'hunter ... (42 chars))",
            "Jsonb({'user': 'ada', 'password': '*** ... (42 chars))",
        ),
        ("hunter2-sec", "'hun ... (42 characters truncated) ... sec'", "'*** ... (42 characters truncated) ... ***'"),
        ("hunter2-sec", "hun ... (42 chars)) h ... (1 chars))", "*** ... (42 chars)) *** ... (1 chars))"),
        ("hunter2-sec", r"\t hunter2-se ... (42 chars))", r"\t *** ... (42 chars))"),
        ("hunter2-sec", r"hun ... (42 chars)) \t", r"*** ... (42 chars)) \t"),
        (
            "hunter2-secrets",
            "hunter2-sec ... (9 characters truncated) ... ter2-secrets, h ... (9 characters truncated) ... s'",
            "*** ... (9 characters truncated) ... ***, *** ... (9 characters truncated) ... ***'",
        ),
        ("hunter2-secret", "Basic YWRhOmh1bnRlcjItc2VjcmV0", "Basic YWRhOm***"),
        ('{"pin": 90817.50, "of": ["ada-1"]}', "90817.50 90817.5 ada-1", "*** *** ***"),
        ('["ada-1"]', "ada-1", MARK),
        ({"pin": [90817, {"of": "ada-1"}], "is": True}, "90817 ada-1 True pin", "*** *** True pin"),
        ("a<b>'c'&d", "a&lt;b&gt;&#x27;c&#39;&amp;d a<b>''c''&d", "*** ***"),
    ],
)
def test_how_a_secret_is_found_in_a_text(secret: Any, text: str, shown: str) -> None:
    assert Secrets([secret]).text(text) == shown


OTHERS = [f"{number:03}".translate(str.maketrans("0123456789", "!?~^_{}<>|")) * 12 for number in range(70)]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("abc abcd (abc) x_abc", "*** abcd (***) x_***"),
        ("hunter22xhunter22", "***x***"),
        ("0123456789abcdefghij, 0123456789abcde, 89abcdefghij0123456789zz", "***, ***, ***"),
        ("0123456789abcdefghij0123456789abcdefghij0123456789zz", MARK),
        ("nothing", "nothing"),
    ],
)
@pytest.mark.parametrize("others", [[], [other[:size] for size in (3, 8, 36) for other in OTHERS]], ids=["few", "many"])
def test_each_of_many_secrets_is_found(others: list[str], text: str, shown: str) -> None:
    assert Secrets([*others, "abc", "hunter22", "0123456789abcdefghij0123456789zz"]).text(text) == shown


def test_of_two_secrets_that_overlap_nothing_is_left() -> None:
    assert Secrets(["ada-1", "ada-1-and-more", "more-of-it"]).text("(ada-1-and-more-of-it) ada-1") == "(***) ***"


def test_a_secret_is_found_wherever_it_was_cut() -> None:
    secret = "".join(f"{number:02}" for number in range(10, 70))
    for length in range(12, 120):
        assert Secrets([secret]).text(f"[{secret[:length]}…]") == "[***…]"
        assert Secrets([secret]).text(f"[…{secret[-length:]}]") == "[…***]"


def nested(levels: int) -> Any:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("by ada-1", "by ***"),
        (4711, MARK),
        (47.5, 47.5),
        (None, None),
        (True, True),
        (b"ada-1", "b'***'"),
        ({"ada-1": ["ada-1", {"n": 5}], "of": "ada-2"}, {MARK: [MARK, {"n": 5}], "of": "ada-2"}),
        (nested(100_000), HIDDEN),
    ],
    ids=type,
)
def test_json_is_shown_without_secrets(value: Any, shown: Any) -> None:
    assert Secrets(["ada-1", 4711, "True", "None"]).json(value) == shown
    assert NOTHING.json(value) is value


@pytest.mark.parametrize(
    ("args", "erased"),
    [({"(erased)": True}, True), ("(erased)", True), ({}, False), ({"(erased)": True, "n": 1}, False), (None, False)],
)
def test_arguments_that_were_erased_are_known(args: object, erased: bool) -> None:
    assert is_erased(args) == erased


@pytest.mark.parametrize(
    ("stored", "value"),
    [
        ('{"a": [1.50, 12345678901234567890], "b": null}', {"a": ["1.50", "12345678901234567890"], "b": None}),
        ('{"a":', '{"a":'),
        ("[" * 101 + "]" * 101, "[" * 101 + "]" * 101),
        ("[" * 100 + "]" * 100, nested(100)),
        ("[" * 100_000, "[" * 100_000),
    ],
    ids=["numbers", "no JSON", "too deep", "deep", "deepest"],
)
def test_json_is_parsed_with_its_numbers_as_they_are_written(stored: str, value: Any) -> None:
    assert parse(stored) == value


def test_what_is_nested_too_deep_is_refused() -> None:
    for below, value in ((nested(100), nested(101)), ({"a": nested(99)}, {"a": nested(100)})):
        assert check_depth(below) is below
        with pytest.raises(ValueError, match=r"^nested too deep$"):
            check_depth(value)


def test_a_number_is_shown_as_it_is_written() -> None:
    assert repr([Digits("1.50")]) == "[1.50]"


def test_a_secret_that_is_cut_by_a_limit_is_found_by_what_remains() -> None:
    for secret in (TOKEN, PEM, TEXTS["spaces"], TEXTS["backslashes"] * 20):
        hidden = Secrets([secret])
        shown = f"[{secret!r:.160} … {repr(secret)[-150:]}] {secret[:50]} {json.dumps(secret)[-40:]}"
        for piece in (secret[:12], repr(secret)[:13], repr(secret)[-13:], json.dumps(secret)[-13:-1]):
            assert piece not in hidden.text(shown)


@pytest.mark.slow
def test_a_failure_with_a_large_secret_is_told_quickly() -> None:
    secret = TOKEN * 200
    began = time.process_time()
    failure = Failure.of(ValueError(f"no {secret} and {secret!r}"), secrets=Secrets([secret]))
    assert time.process_time() - began < 5
    assert failure.message == f"no {MARK} and '{MARK}'"
