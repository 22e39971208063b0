"""What escapes mean, where they stand, and how a text looks when it is encoded."""

from __future__ import annotations

import pytest

from sqla_jobs.rules.escapes import Plain, encodings


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("", ""),
        ("as it is", "as it is"),
        (r"\b\f\n\r\t", "\b\f\n\r\t"),
        (r"\\\\n", "\n"),
        (r"\z \\ \'", "z  '"),
        (r"\xe9 \u00e9 \U000000e9 \\u00E9", "é é é é"),
        (r"\ud83d\udd11 \\uD83D\\uDD11 \U0001f511", "🔑 🔑 🔑"),
        (r"\x4 \u12 \U00110000", "x4 u12 U00110000"),
        ("%C3%A9 %252525C3 100%", "Ã© Ã 100%"),
        ("a+b", "a b"),
        ("&lt;&gt;&quot;&apos;&amp;", "<>\"'&"),
        ("&#39; &#x27; &#34;", "' ' \""),
        ("&amp;amp;lt; &nbsp;", "< &nbsp;"),
        (r"''' '\''", "' '"),
        ("  | one\n  | two\n | three\n|four", "  | one\ntwo\nthree\n|four"),
    ],
)
def test_escapes_mean_a_character_however_often_it_was_escaped(text: str, plain: str) -> None:
    assert Plain(text).text == plain


@pytest.mark.parametrize(
    ("text", "part", "origin"),
    [
        ("as it is", "it", "it"),
        (r"a\nb and c\nd", "a\nb", r"a\nb"),
        (r"a\nb and c\nd", "b and c", "b and c"),
        (r"a\nb and c\nd", "nd c\nd", r"nd c\nd"),
        ("%41%42%43", "A", "%41"),
        ("%41%42%43", "B", "%42"),
        ("%41%42%43", "C", "%43"),
        ("5 &lt; 6 &amp;amp; 7", "< 6 &", "&lt; 6 &amp;amp;"),
        (r"say \'it\'s\' so", "'it's'", r"'it\'s\'"),
        (r"C:\share\x", "share", "share"),
        (r"C:\share\x", "C:sharex", r"C:\share\x"),
    ],
)
def test_a_part_is_found_in_the_text_with_its_escapes(text: str, part: str, origin: str) -> None:
    plain = Plain(text)
    at = plain.text.index(part)
    begin, end = plain.origin(at, at + len(part))
    assert text[begin:end] == origin


@pytest.mark.parametrize(
    ("text", "forms"),
    [
        ("key", "key 6b6579"),  # in base64 it is too short to be searched for
        ("YWI", "YWI 595749"),  # base64 of too little
        ("ab.cd", "ab.cd 61622e6364 YWIuY2Q YWIuY2 FiLmNk hYi5jZ"),  # no base64
        ("12.45W", "12.45W 31322e343557 MTIuNDVX EyLjQ1V xMi40NV"),
        ("a>?é", "a>?Ã© 613e3fc3a9 YT4/w6k YT4_w6k YT4/w6 YT4_w6 E+P8Op E-P8Op hPj/Dq hPj_Dq"),
        ("zu\udcff", "zuí³¿ 7a75edb3bf enXts78 enXts7 p17bO/ p17bO_ 6de2zv"),
    ],
)
def test_a_text_is_searched_for_in_hexadecimal_and_base64_at_any_place_of_longer_data(text: str, forms: str) -> None:
    assert set(encodings(text)) == set(forms.split())


@pytest.mark.parametrize(
    ("text", "forms"),
    [
        ("aHVudGVyMi1zZWNyZXQ", ["hunter2-secret", "68756e746572322d736563726574", "h1bnRlcjItc2VjcmV0"]),
        ("aHVudGVyMi1zZWNyZXQ=", ["hunter2-secret"]),
        ("aHVudGVyMi1z", ["hunter2-s"]),
        ("WmsxOf8-_w", ["Zk19\ufffd>\ufffd", r"Zk19\xff>\xff", "Zk19\udcff>\udcff", "Zk19ÿ>ÿ"]),
        ("WmsxOf8+/w==", ["Zk19ÿ>ÿ"]),
        ("YWJj", ["abc"]),
    ],
)
def test_base64_is_searched_for_by_what_it_encodes(text: str, forms: list[str]) -> None:
    assert {*forms} <= {*encodings(text)}
