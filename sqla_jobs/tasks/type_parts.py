"""The parts of a type annotation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import is_dataclass
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from typing_extensions import is_typeddict


def parts_of(annotation: Any) -> Iterator[Any]:
    """Yield a type, its arguments and metadata, and the types of its fields, at any depth."""
    left, seen = [annotation], set[int]()
    while left:
        one = left.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        origin = get_origin(one) or one
        if isinstance(origin, type) and (is_dataclass(origin) or is_typeddict(origin) or issubclass(origin, BaseModel)):
            with suppress(Exception):  # a name is not defined yet
                hints = get_type_hints(origin, include_extras=True).values()
                left += [hint for hint in hints if get_origin(hint) is not ClassVar]
        of_alias = (getattr(one, name, None) for name in ("__supertype__", "__value__"))
        left += [*get_args(one), *(part for part in of_alias if part is not None)]
