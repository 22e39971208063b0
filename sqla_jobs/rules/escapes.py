"""Undoes the escapes of `repr`, JSON, URLs, HTML and SQL, and lists the encodings of a text."""

from __future__ import annotations

import base64
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator

_ESCAPE = re.compile(
    r"""
    \\+ (?: u(?P<high>[dD][89abAB][0-9a-fA-F]{2})\\+u(?P<low>[dD][c-fC-F][0-9a-fA-F]{2})
          | (?:u(?=[0-9a-fA-F]{4})|U(?=00(?:0[0-9a-fA-F]|10)[0-9a-fA-F]{4})|x(?=[0-9a-fA-F]{2}))
            (?P<code>(?<=U)[0-9a-fA-F]{8}|(?<=u)[0-9a-fA-F]{4}|(?<=x)[0-9a-fA-F]{2})
          | (?P<letter>[bfnrt]) )?
    | % (?:25)* (?P<percent>[0-9a-fA-F]{2})
    | & (?:amp;)* (?P<entity>amp|lt|gt|quot|apos|\#39|\#x27|\#34);
    | (?P<quotes>'(?:\\*')+)
    | (?P<plus>\+)
    | (?P<margin>\n[ ]*\|[ ])
    """,
    re.VERBOSE,
)
"""A character escaped, once or repeatedly, by `repr`, JSON, URLs, HTML, SQL or the traceback of an exception group."""
_LETTERS = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_ENTITIES = {"amp": "&", "lt": "<", "gt": ">", "quot": '"', "apos": "'", "#39": "'", "#x27": "'", "#34": '"'}
_ALPHABETS = str.maketrans("-_", "+/"), str.maketrans("+/", "-_")
_ENCODED = 6
"""Minimum length of base64 or hexadecimal text to search for."""


class Plain:
    """A text with all escapes undone, and a map from its parts to the original."""

    def __init__(self, text: str) -> None:
        parts: list[str] = []
        self._places = [0]
        self._origins = [0]
        end = length = 0
        for escape in _ESCAPE.finditer(text):
            begin = escape.start()
            meant = _meant(escape)
            length += begin - end
            self._places += (length, length + len(meant))
            parts += (text[end:begin], meant)
            length += len(meant)
            end = escape.end()
            self._origins += (begin, end)
        self.text: str = "".join((*parts, text[end:]))

    def origin(self, begin: int, end: int) -> tuple[int, int]:
        """Return the span in the original that corresponds to a span in the plain text."""
        first = bisect_right(self._places, begin) - 1
        last = bisect_left(self._places, end)
        if last == len(self._places) or self._places[last] > end:
            last -= 1
        return (
            self._origins[first] + begin - self._places[first],
            self._origins[last] + end - self._places[last],
        )


def _meant(escape: re.Match[str]) -> str:
    """Return the character that an escape stands for; an empty string for a backslash."""
    match escape.lastgroup:
        case "low":
            return bytes.fromhex(escape["high"] + escape["low"]).decode("utf-16-be")
        case "code" | "percent":
            return chr(int(escape[escape.lastgroup], 16))
        case "letter":
            return _LETTERS[escape["letter"]]
        case "entity":
            return _ENTITIES[escape["entity"]]
        case "quotes":
            return "'"
        case "plus":
            return " "
        case "margin":
            return "\n"
        case _:
            return ""


def encodings(text: str) -> Iterator[str]:
    """Yield the encoded forms of a text and, if it is base64, those of the decoded bytes."""
    written = text.encode(errors="surrogatepass")
    yield written.decode("latin-1")
    yield from _of_bytes(written)
    with_padding = text.translate(_ALPHABETS[0])
    try:
        decoded = base64.b64decode(with_padding + "=" * (-len(with_padding) % 4), validate=True)
    except ValueError:
        return
    if len(decoded) > 2:
        yield from (decoded.decode(errors=how) for how in ("replace", "backslashreplace", "surrogateescape"))
        yield decoded.decode("latin-1")
        yield from _of_bytes(decoded)


def _of_bytes(data: bytes) -> Iterator[str]:
    """Yield the data in hexadecimal, and in base64 at each of the three offsets inside longer data."""
    found = [data.hex(), base64.b64encode(data).decode().rstrip("=")]
    for before, begin in ((0, 0), (1, 2), (2, 3)):
        encoded = base64.b64encode(bytes(before) + data).decode()
        found.append(encoded[begin : (before + len(data)) * 8 // 6])
    for form in found:
        if len(form) >= _ENCODED:
            yield form
            yield form.translate(_ALPHABETS[1])
