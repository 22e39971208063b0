"""Masks the values of sensitive arguments in texts, before these are stored, logged or shown."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from itertools import chain
from typing import Any

from sqla_jobs.rules.checks import MAX_DEPTH
from sqla_jobs.rules.escapes import Plain, encodings

MARK = "***"
"""Replaces a secret inside a text."""
HIDDEN = "(hidden)"
"""Replaces a whole sensitive argument."""
ERASED = "(erased)"
"""The text that is shown in place of erased arguments."""
ERASED_ARGS = {ERASED: True}
"""The arguments of an erased job. No parameter has such a name, so no task takes them."""

_SHORTEST = 3
"""Minimum length of a secret. Shorter values occur in every text and are not masked."""
_ANYWHERE = {str: 4, int: 8}
"""Minimum length of a text or a number that is masked even inside longer words and numbers."""
_REST = 12
"""Minimum length at which a piece of a secret is masked."""
_CUTTABLE = 28
"""Length beyond which tools cut the middle out of a value: `reprlib` does so from 30 characters, including quotes."""
_MANY = 1_000
"""Encoded forms are masked for this many secrets of a job, the longest ones. Others are masked only in plain form."""
_FEW = 64
"""Up to this number of forms, a search for each form is faster than a check at each position in the text."""
_CUT = re.compile(r" \.\.\. \(\d+ (?:chars\)|characters truncated\) \.\.\. )")
"""The mark of a cut.

psycopg puts it at the end of a cut Json or Jsonb, and SQLAlchemy in the middle of a cut parameter.
"""


class Secrets:
    """Masks the stored values of sensitive arguments in texts and JSON.

    Each text and number of at least 3 characters is a secret, even inside dicts and lists. `true`, `false` and `null`
    are not secrets. Texts of 3 characters, and numbers of fewer than 8 characters, are masked only where no letter or
    digit is beside them. All other secrets are masked anywhere.
    """

    def __init__(self, values: Iterable[object]) -> None:
        self._values = values

    def text(self, text: str) -> str:
        """Return `text` with a mark for each secret in it: plain, escaped, encoded or cut.

        A secret that was cut is masked if its first 12 characters are left. If the secret is longer than 28 characters,
        its last 12 characters are enough, too. psycopg and SQLAlchemy leave a mark where they cut a parameter: beside
        such a mark, even shorter pieces are masked.
        """
        if not self._forms:
            return text
        spans = list(self._found(text))
        plain = Plain(text)
        if plain.text != text:
            spans += [plain.origin(*span) for span in self._found(plain.text)]
        return _masked(text, spans)

    def json(self, value: Any) -> Any:
        """Return JSON, or a column's value, with secrets masked in texts, in keys, and in the text of other values."""
        try:
            return self._json(value) if self._forms else value
        except RecursionError:
            return HIDDEN

    def _json(self, value: Any) -> Any:
        match value:
            case dict():
                return {self.text(key): self._json(item) for key, item in value.items()}
            case list():
                return [self._json(item) for item in value]
            case None | bool():
                return value
            case _:
                return value if (redacted := self.text(said := str(value))) == said else redacted

    def _found(self, text: str) -> Iterator[tuple[int, int]]:
        """Yield the spans of secrets, in no particular order. Some may overlap."""
        for size, heads in self._heads.items():
            yield from self._begun(text, heads, size)
        if self._tails:
            length = len(text)
            for begin, end in self._begun(text[::-1], self._tails, _REST):
                yield length - end, length - begin
        for cut in _CUT.finditer(text):
            yield from self._beside(text, *cut.span())

    def _beside(self, text: str, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the spans of pieces of secrets on both sides of a cut, however short."""
        for size in range(min(_REST, begin), 0, -1):
            if text[begin - size : begin] in self._beginnings:
                yield begin - size, begin
                break
        for size in range(_CUTTABLE, 0, -1):
            if text[end : end + size] in self._endings:
                yield end, end + size
                return

    def _begun(self, text: str, heads: Mapping[str, list[str]], size: int) -> Iterator[tuple[int, int]]:
        """Yield the spans of forms, whole or cut, that begin with one of `heads`."""
        if len(heads) <= _FEW:
            for head, forms in heads.items():
                at = text.find(head)
                while at >= 0:
                    length, step = self._reach(text, at, forms)
                    if length:
                        yield at, at + length
                    at = text.find(head, at + step)
            return
        at = 0
        while head := text[at : at + size]:
            length, step = self._reach(text, at, heads.get(head, ()))
            if length:
                yield at, at + length
            at += step

    def _reach(self, text: str, at: int, forms: Iterable[str]) -> tuple[int, int]:
        """Return the length of the longest form, whole or cut, at this position, and the step to the next position."""
        reach = 0, 1
        for form in forms:
            length = _agreeing(text, at, form)
            whole = length == len(form)
            if (whole or length >= _REST) and not (form in self._alone and _is_inside(text, at, at + length)):
                reach = max(reach, (length, length if whole else length - _REST + 1))
        return reach

    @cached_property
    def _forms(self) -> frozenset[str]:
        leaves = sorted(_leaves(self._values), key=lambda leaf: len(str(leaf)), reverse=True)
        raw = {str(leaf) for leaf in leaves} | {str(float(leaf)) for leaf in leaves if isinstance(leaf, Digits)}
        for leaf in leaves[:_MANY]:
            raw.update(encodings(leaf) if isinstance(leaf, str) and len(leaf) >= _SHORTEST else ())
        return frozenset(form for form in chain(raw, (Plain(form).text for form in raw)) if len(form) >= _SHORTEST)

    @cached_property
    def _alone(self) -> frozenset[str]:
        return frozenset(form for form in self._forms if len(form) < _ANYWHERE[int if _is_number(form) else str])

    @cached_property
    def _heads(self) -> dict[int, dict[str, list[str]]]:
        """Index the forms by the length of their beginning, then by the beginning."""
        heads: dict[int, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for form in self._forms:
            size = min(len(form), _REST)
            heads[size][form[:size]].append(form)
        return heads

    @cached_property
    def _beginnings(self) -> frozenset[str]:
        return frozenset(form[:size] for form in self._forms for size in range(1, _REST))

    @cached_property
    def _endings(self) -> frozenset[str]:
        """The ends that `_tails` does not find.

        For a long form, these are the ends that are shorter than `_REST`; for any other form, all its ends.
        """
        return frozenset(
            form[-size:] for form in self._forms for size in range(1, _REST if len(form) > _CUTTABLE else len(form))
        )

    @cached_property
    def _tails(self) -> dict[str, list[str]]:
        """Index the long forms by their ends, with forms and ends reversed."""
        tails: dict[str, list[str]] = defaultdict(list)
        for form in self._forms:
            if len(form) > _CUTTABLE:
                tails[form[: -_REST - 1 : -1]].append(form[::-1])
        return tails


NOTHING = Secrets(())
"""An instance without secrets, which changes nothing."""


def is_erased(args: object) -> bool:
    """Return whether the arguments of a job were erased. Version 0.1 replaced erased arguments by a text."""
    return args in (ERASED_ARGS, ERASED)


def parse(stored: str) -> Any:
    """Parse JSON, keeping numbers as they are written. Return invalid JSON unchanged."""
    try:
        return check_depth(json.loads(stored, parse_int=Digits, parse_float=Digits))
    except (ValueError, RecursionError):
        return stored


def check_depth(value: Any) -> Any:
    """Return `value`. Raises `ValueError` for JSON with more than `MAX_DEPTH` levels, too deep to recurse through."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [item for one in level for item in _items(one)]
        if not level:
            return value
    raise ValueError("nested too deep")


def _items(value: object) -> Iterable[Any]:
    match value:
        case dict():
            return value.values()
        case list():
            return value
        case _:
            return ()


class Digits(str):
    """A number as it is written. A float would lose digits, and Python does not convert very long ints."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _leaves(values: Iterable[object]) -> Iterator[object]:
    """Yield all texts and numbers, including those inside a text that is itself JSON."""
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        match value:
            case dict():
                waiting.extend(value.values())
            case list():
                waiting.extend(value)
            case None | bool():
                pass
            case str() if value[:1] in ("{", "[") and not isinstance(inner := parse(value), str):
                yield value
                waiting.append(inner)
            case _:
                yield value


def _is_number(text: str) -> bool:
    return text.removeprefix("-").replace(".", "", 1).isdecimal()


def _agreeing(text: str, at: int, form: str) -> int:
    """Return how many characters of `form` match the text at this position, where its beginning matches."""
    if text.startswith(form, at):
        return len(form)
    known = step = _REST
    while step:
        if text.startswith(form[known : known + step], at + known):
            known, step = known + step, step + step
        else:
            step //= 2
    return known


def _is_inside(text: str, begin: int, end: int) -> bool:
    """Return whether a letter or digit is directly before or after the span."""
    return text[begin - 1 : begin].isalnum() or text[end : end + 1].isalnum()


def _masked(text: str, spans: Iterable[tuple[int, int]]) -> str:
    parts: list[str] = []
    end = 0
    for begin, stop in sorted(spans):
        if begin > end or not parts:
            parts += (text[end:begin], MARK)
        end = max(end, stop)
    return "".join((*parts, text[end:]))
