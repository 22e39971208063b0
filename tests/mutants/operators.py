"""What may be wrong with a statement: each mutant is its text with one change."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class Mutant(NamedTuple):
    """One change: the text from `start` to `end` becomes `new`."""

    start: int
    end: int
    old: str
    new: str

    def applied(self, text: str) -> str:
        """The statement with the change."""
        return text[: self.start] + self.new + text[self.end :]

    def named(self, text: str) -> str:
        """The change among the 30 characters on both sides of it, whatever tables and parameters are called."""
        before, after, old, new = (
            _PARAMETER.sub("?", _TABLE.sub("sqla_", part))
            for part in (text[: self.start], text[self.end :], self.old, self.new)
        )
        return " ".join(f"{before[-30:]}[{old} -> {new}]{after[:30]}".split())


_TABLE = re.compile(r"\b\w+\.sqla_|(?:\"?Odd schema\"?\.|(?<=\bOF ))[a-z]+_")
"""The beginning of a table's name; some tests have tables of other names."""
_PARAMETER = re.compile(r"%\(\w+\)s|\$\d+")
"""A statement is sent in two formats."""
_OTHER = {
    "off": "on",
    "on": "off",
    "infinity": "-infinity",
    "queued": "scheduled",
    "scheduled": "queued",
    "running": "queued",
    "succeeded": "failed",
    "failed": "succeeded",
    "cancelled": "failed",
    "worker": "clock",
}
_SWAPPED = [
    (r" > ", " >= "),
    (r" >= ", " > "),
    (r" < ", " <= "),
    (r" <= ", " < "),
    (r" (?:!=|<>) (?!ALL)", " = "),
    (r" IS NOT false", " IS true"),
    (r" \+ ", " - "),
    (r" - ", " + "),
    (r" \* (?!INTERVAL|interval)", " / "),
    (r"\bleast\(", "greatest("),
    (r"\bgreatest\(", "least("),
    (r"\bmin\(", "max("),
    (r"\bmax\(", "min("),
    (r"\bDISTINCT(?: ON \(\w+\))? (?!FROM)", ""),
    (r"\bUNION (?!ALL)", "UNION ALL "),
    (r"(?<!NOT )\b(?:EXISTS|IS DISTINCT FROM)\b", "NOT "),
    (r" DESC\b", ""),
    (r" SKIP LOCKED", ""),
    (r" FOR (?:NO KEY UPDATE|UPDATE|KEY SHARE|SHARE)(?: OF \w+)?(?: SKIP LOCKED)?", ""),
    (r"(?<= FOR )NO KEY UPDATE", "UPDATE"),
    (r"(?<= FOR )KEY SHARE", "UPDATE"),
    (r"\bstatement_timestamp\(\)", "'-infinity'::timestamptz"),
]
_STEP = re.compile(r"'(?:[^']|'')*'|%\(\w+\)s|\w+|\(|\)|,|\S")
_TAKES_A_NAME = ("interval ", "date_part(", "current_setting(", "set_config(", "nextval(", "hashtextextended(")
_OPENS = {"WHERE", "AND", "OR", "ON", "HAVING", "WHEN"}
_CLOSES = _OPENS | {
    *("ORDER", "LIMIT", "FOR", "UNION", "GROUP", "RETURNING", "THEN", "JOIN", "CROSS", "LEFT", "ELSE", "END"),
    *("OFFSET", "SELECT", "FROM", ","),
}


def mutants(text: str, fixed: Mapping[str, Any]) -> list[Mutant]:
    """All of a statement, in the order of its text. `fixed` are the parameters that are the same at each call."""
    found = {(one.start, one.end, one.new): one for one in (*_swapped(text), *_constants(text, fixed), *_without(text))}
    return [found[key] for key in sorted(found)]


def _swapped(text: str) -> Iterator[Mutant]:
    for pattern, new in _SWAPPED:
        for match in re.finditer(pattern, text):
            if new == "NOT ":
                negated = "NOT EXISTS" if match[0] == "EXISTS" else "IS NOT DISTINCT FROM"
                yield Mutant(match.start(), match.end(), match[0], negated)
            elif not _is_quoted(text, match.start()):
                yield Mutant(match.start(), match.end(), match[0], new)
    for match in re.finditer(r"(\w+)=NULL\b", text):
        yield Mutant(match.start(), match.end(), match[0], f"{match[1]}={_target(text, match.start())}.{match[1]}")


def _target(text: str, at: int) -> str:
    return str(re.findall(r"UPDATE ((?:\"[^\"]+\"|\w)\S*) (?:\w+ )?SET", text[:at])[-1])


def _is_quoted(text: str, at: int) -> bool:
    return text.count("'", 0, at) % 2 == 1


def _constants(text: str, fixed: Mapping[str, Any]) -> Iterator[Mutant]:
    for match in re.finditer(r"%\((\w+)\)s", text):
        value = fixed.get(match[1])
        if isinstance(value, str):
            yield Mutant(match.start(), match.end(), value, f"'{_other(value)}'")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield Mutant(match.start(), match.end(), str(value), str(value + 1))
    for match in re.finditer(r"'([^'{}]*)'", text):
        named = text.lower().endswith(_TAKES_A_NAME, 0, match.start())
        if match[1] and not named and not _is_quoted(text, match.start()):
            yield Mutant(match.start(), match.end(), match[0], f"'{_other(match[1])}'")
    for match in re.finditer(r"(?<![\w$.\[:])\d+(?:\.\d+)?(?![\w.])", text):
        if not _is_quoted(text, match.start()):
            number = float(match[0]) + 1 if "." in match[0] else int(match[0]) + 1
            yield Mutant(match.start(), match.end(), match[0], str(number))


def _other(text: str) -> str:
    return _OTHER.get(text, f"{text}x")


def _without(text: str) -> Iterator[Mutant]:
    """Each condition taken away, and each ORDER BY and LIMIT."""
    steps = [(match[0], match.start(), match.end()) for match in _STEP.finditer(text)]
    for place, (word, start, _) in enumerate(steps):
        if word in ("ORDER", "LIMIT") and (end := _end(steps, place, {"LIMIT", "FOR", "OFFSET", "UNION"})) > start:
            yield Mutant(start, end, text[start:end], "")
        if word in _OPENS:
            begin = steps[place + 1][1]
            end = _end(steps, place, _CLOSES, is_between="BETWEEN")
            yield from _one_less(text, word, begin, end)
        if word == "(" and place + 1 < len(steps):  # the first operand of what stands in brackets
            end = _end(steps, place, _CLOSES)
            if (following := text[end:].split(None, 1)) and following[0] in ("AND", "OR"):
                yield from _one_less(text, word, steps[place + 1][1], end)


def _one_less(text: str, word: str, begin: int, end: int) -> Iterator[Mutant]:
    old = text[begin:end].rstrip()
    following = (text[end:].split(None, 1) or [""])[0]
    near = (word, following)
    new = "true" if "AND" in near else "false" if "OR" in near or word == "WHEN" else "true"
    is_plain = word == "WHEN" and re.fullmatch(r"'\w*'|\d+|%\(\w+\)s(::\w+)?", old)
    if old.lower() not in ("true", "false") and not is_plain and not old.startswith(("CONFLICT", "(gates)", "SELECT")):
        yield Mutant(begin, begin + len(old), old, new)


def _end(steps: list[tuple[str, int, int]], place: int, closing: set[str], is_between: str = "") -> int:
    """Where what begins after this step ends: before such a word at the same depth, or a bracket that closes."""
    depth, was_between = 0, False
    for word, start, _ in steps[place + 1 :]:
        if depth == 0 and (word in (")", "END") or word in closing):
            if not (word == "AND" and was_between):
                return start
            was_between = False
        depth += (word in ("(", "CASE")) - (word in (")", "END"))
        was_between = was_between or word == is_between
    return steps[-1][2]
