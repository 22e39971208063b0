"""Withholds lines that repeat sensitive arguments, before these are stored, logged or shown."""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Iterable, Iterator
from functools import cached_property
from itertools import groupby
from typing import Any, cast

from sqla_jobs.rules.value_checks import MAX_DEPTH

WITHHELD = "(withheld: it repeats a sensitive argument)"
"""Replaces lines that repeat a secret."""
HIDDEN = "(hidden)"
"""Replaces a whole sensitive argument."""
ENCRYPTED = "(encrypted)"
"""The text that is shown in place of an encrypted value, and the one name in the JSON object that holds its token."""
ERASED = "(erased)"
"""The text that is shown in place of erased arguments."""
ERASED_ARGS = {ERASED: True}
"""The arguments of an erased job. No parameter has such a name, so no task takes them."""

_ENOUGH, _SHORT = 6, 4
"""How many characters in a row betray a secret, and how many betray one that is shorter than that."""


class Secrets:
    """Withholds each line that shares six characters in a row with a sensitive argument.

    Texts and numbers inside dicts and lists count on their own, as they are stored and as `repr` and JSON write them.
    One of four or five characters is betrayed by four, and shorter ones by nothing: they occur in every text. Keys of
    dicts count as values do, except `field_names`.
    """

    def __init__(self, values: Iterable[object], field_names: Collection[str] = ()) -> None:
        self._values = values
        self._field_names = {ENCRYPTED, *field_names}

    def text(self, text: str) -> str:
        """Return `text` with its lines that repeat a secret withheld, neighbours together."""
        if text.startswith(_TOKEN):
            return ENCRYPTED
        if not self._forms:
            return text
        there = _pieces(text)
        shared = {piece for form in self._forms for piece in _betraying(form) if piece in there}
        if not shared:
            return text
        lines: list[str] = []
        for are_secret, group in groupby(text.split("\n"), lambda line: not shared.isdisjoint(_pieces(line))):
            lines += [WITHHELD] if are_secret else group
        return "\n".join(lines)

    def json(self, value: Any) -> Any:
        """Return JSON, or a column's value, with its texts, its keys and the text of its other values withheld."""
        if token_of(value) is not None:
            return ENCRYPTED
        try:
            return self._json(value) if self._forms else value
        except RecursionError:
            return HIDDEN

    def _json(self, value: Any) -> Any:
        match value:
            case dict():
                if token_of(value) is not None:
                    return ENCRYPTED
                return {self.text(key): self._json(item) for key, item in value.items()}
            case list():
                return [self._json(item) for item in value]
            case None | bool():
                return value
            case _:
                return value if (redacted := self.text(said := str(value))) == said else redacted

    @cached_property
    def _forms(self) -> frozenset[str]:
        leaves = _leaves(self._values, self._field_names)
        return frozenset(form for leaf in leaves for form in _forms(leaf) if len(form) >= _SHORT)


NOTHING = Secrets(())
"""An instance without secrets, which changes nothing."""


_TOKEN = f'{{"{ENCRYPTED}":'
"""The beginning of an encrypted text."""


def token_of(value: object) -> str | None:
    """Return the token of an encrypted value that was decoded from JSON, or None for another value."""
    if not isinstance(value, dict):
        return None
    found = cast("dict[str, Any]", value)
    token = found.get(ENCRYPTED) if len(found) == 1 else None
    return token if isinstance(token, str) else None


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


def _leaves(values: Iterable[object], field_names: Collection[str]) -> Iterator[object]:
    """Yield all texts and numbers, and all keys except names of fields."""
    waiting = list(values)
    while waiting:
        match value := waiting.pop():
            case dict():
                waiting.extend(value.values())
                waiting.extend(key for key in value if key not in field_names)
            case list():
                waiting.extend(value)
            case None | bool():
                pass
            case _:
                yield value


def _forms(leaf: object) -> Iterator[str]:
    """Yield a text or number as it is, and as `repr` and JSON write it. Bytes are stored in base64."""
    texts = [str(leaf)]
    if isinstance(leaf, Digits):
        texts.append(str(float(leaf)))
    else:
        try:
            data = base64.b64decode(texts[0], altchars=b"-_", validate=True)
        except ValueError:
            pass
        else:
            texts.append(data.decode(errors="replace"))
            yield repr(data)[2:-1]
    for text in texts:
        yield from (text, repr(text)[1:-1], json.dumps(text)[1:-1])


def _betraying(form: str) -> Iterator[str]:
    size = _ENOUGH if len(form) >= _ENOUGH else _SHORT
    return (piece for at in range(len(form) - size + 1) if (piece := form[at : at + size]).strip())


def _pieces(text: str) -> set[str]:
    return {text[at : at + size] for size in (_ENOUGH, _SHORT) for at in range(len(text) - size + 1)}
