"""How secrets are found in a text, whatever became of them there."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from sqla_jobs.rules.redaction import HIDDEN, NOTHING, WITHHELD, Secrets, parse

PEM = "-----BEGIN PRIVATE KEY-----\nMIIEvQxK8zT1/Yq+0a\nPq9Lm2Rf7vBn+/Zk==\n-----END PRIVATE KEY-----\n"
TOKEN = "".join(f"{number:04x}Zk" for number in range(834))[:5000]
TEXTS = {
    "plain": "tr0ub4dor&3",
    "single quotes": "it's'Zk1'quoted''twice",
    "newlines": "first Zk3\nsecond Zk3\r\n\tthird",
    "backslashes": "C:\\new\\Zk4\\table\\\\share\\",
    "PEM": PEM,
    "unicode": "Пароль-Zk5-ключ-é-ß",
    "emoji": "🔑Zk6👩‍👩‍👧‍👦🔒",
    "astral and controls": "Zk7\x7f\x85\u2028𐍈\U000e0041",
    "long token": TOKEN,
    "HTML": "<script>alert('Zk11')</script>&amp;&lt;",
    "JSON": json.dumps({"private_key": "Zk14\nline", "n": [{"x": 'Zk14"q'}]}),
    "base64": base64.b64encode(b"Zk15 in base64, which is text").decode(),
    "trailing newline": "Zk16-secret\n",
}


@pytest.mark.parametrize(
    ("secret", "text", "shown"),
    [
        ("", "nothing ''", "nothing ''"),
        ("abc", "abc", "abc"),
        ("abcd", "xabcdx", WITHHELD),
        ("abcde", "bcde", WITHHELD),
        ("abcdef", "abcde bcdef", "abcde bcdef"),
        ("hunter2-secret", "Jsonb({'user': 'ada', 'password': 'hunter ... (42 chars))", WITHHELD),
        (1234, "line 1234", WITHHELD),
        (90817.5, "pin 90817.50", WITHHELD),
        (True, "True true", "True true"),
        (None, "None null", "None null"),
        ("two      words", "  two\n      ", "  two\n      "),
        ("line\nfeed", r"'line\nfeed'", WITHHELD),
        ("key \U0001f511\U0001f511", r"\ud83d\udd11", WITHHELD),
        (base64.urlsafe_b64encode(b"\xff\xfe of bytes?\xfb\xff").decode(), r"b'\xff\xfe'", WITHHELD),
        (base64.b64encode(b"some bytes").decode(), "(some bytes)", WITHHELD),
        (
            {"pin": [90817, {"of": "ada-12"}], "is": True},
            "90817\npin is True\nada-12",
            f"{WITHHELD}\npin is True\n{WITHHELD}",
        ),
        ({"hunter2-key": {"nested-key": 1}}, "no 'hunter2-key'\nnor ested-k\n1", f"{WITHHELD}\n1"),
        ({"(encrypted)": "gAAAAAB-token"}, "(encrypted)", "(encrypted)"),
        ("P1D", "took 1 day, 0:00:00\n2 days, 0:00:00", f"{WITHHELD}\n2 days, 0:00:00"),
        (
            "-PT5S",
            "(datetime.timedelta(days=-1, seconds=86395),)\ndatetime.timedelta(days=-1",
            f"{WITHHELD}\ndatetime.timedelta(days=-1",
        ),
        (
            "2026-01-02",
            "[datetime.date(2026, 1, 2)]\ndatetime.date(2025, 1, 2)",
            f"{WITHHELD}\ndatetime.date(2025, 1, 2)",
        ),
        (
            "2026-01-02T03:04:00Z",
            "datetime.datetime(2026, 1, 2, 3, 4, tzinfo=UTC)\n2026-01-02 03:04:00+00:00",
            WITHHELD,
        ),
        ("03:04:00", "at datetime.time(3, 4)\ntimes", f"{WITHHELD}\ntimes"),
        ("first line\nsecond line", "said:\nfirst line\nsecond line\n", f"said:\n{WITHHELD}\n"),
    ],
)
def test_lines_that_repeat_a_secret_are_withheld(secret: Any, text: str, shown: str) -> None:
    assert Secrets([secret]).text(text) == shown


def test_a_secret_is_found_wherever_it_was_cut() -> None:
    for secret in TEXTS.values():
        for shown in (secret, repr(secret), json.dumps(secret)):
            text = f"told\n[{shown:.160} … {shown[-150:]}]"
            assert Secrets([secret]).text(text).partition("\n")[0] == "told"
            assert "Zk" not in Secrets([secret]).text(text)


def nested(levels: int) -> Any:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("by ada-1", WITHHELD),
        (4711, WITHHELD),
        (47.5, 47.5),
        (None, None),
        (True, True),
        (b"ada-1", WITHHELD),
        ({"ada-1": ["ada-1", {"n": 5}], "of": "bob-2"}, {WITHHELD: [WITHHELD, {"n": 5}], "of": "bob-2"}),
        (nested(100_000), HIDDEN),
    ],
    ids=type,
)
def test_json_is_shown_without_secrets(value: Any, shown: Any) -> None:
    assert Secrets(["ada-1", 4711, "True", "None"]).json(value) == shown
    assert NOTHING.json(value) is value


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
