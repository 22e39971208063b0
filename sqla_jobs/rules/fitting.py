"""The arguments that each process's tasks take, as published in the processes' rows."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, cast


@dataclass(frozen=True, slots=True)
class Takes:
    """The arguments of a task, by name, and a digest of their types."""

    required: tuple[str, ...]
    optional: tuple[str, ...]
    types: str

    def shown(self) -> dict[str, Any]:
        """Return the form that is stored in a process's row."""
        return {"required": [*self.required], "optional": [*self.optional], "types": self.types}

    @classmethod
    def read(cls, shown: object) -> Takes | None:
        """Parse the form that is stored in a process's row; return `None` for other data."""
        if not isinstance(shown, dict):
            return None
        found = cast("dict[str, object]", shown)
        return cls(_names(found.get("required")), _names(found.get("optional")), str(found.get("types", "")))

    def fits(self, given: Collection[str]) -> bool:
        """Return whether the task takes arguments with these names. The values may still not fit."""
        return set(self.required) <= set(given) <= {*self.required, *self.optional}

    def __str__(self) -> str:
        return ", ".join([*self.required, *(f"{name}=…" for name in self.optional)])


def _names(value: object) -> tuple[str, ...]:
    return tuple(map(str, cast("list[object]", value))) if isinstance(value, list) else ()
