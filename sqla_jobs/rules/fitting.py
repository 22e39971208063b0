"""Which arguments a task takes, as processes tell one another in their rows. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, cast

UNFIT = "its arguments do not fit this code"
"""How the reason begins for which a process passes over a job that others may run."""


@dataclass(frozen=True, slots=True)
class Takes:
    """The arguments of a task, by name, and a digest of their types."""

    required: tuple[str, ...]
    optional: tuple[str, ...]
    types: str

    def shown(self) -> dict[str, Any]:
        """As it stands in the row of a process."""
        return {"required": [*self.required], "optional": [*self.optional], "types": self.types}

    @classmethod
    def read(cls, shown: object) -> Takes | None:
        """The same, read back; `None` for what no process of this library has written."""
        if not isinstance(shown, dict):
            return None
        found = cast("dict[str, object]", shown)
        return cls(_names(found.get("required")), _names(found.get("optional")), str(found.get("types", "")))

    def fits(self, given: Collection[str]) -> bool:
        """Whether a job with arguments of these names can be called; their values may not fit all the same."""
        return set(self.required) <= set(given) <= {*self.required, *self.optional}

    def __str__(self) -> str:
        return ", ".join([*self.required, *(f"{name}=…" for name in self.optional)])


@dataclass(frozen=True, slots=True)
class Code:
    """What a live worker serves and knows: the queues, and what each task takes."""

    queues: Collection[str]
    tasks: dict[str, object] | None
    """`None`: it does not tell, since it is of an older version."""

    @classmethod
    def read(cls, queues: object, tasks: object) -> Code:
        """From the columns of its row."""
        names: list[str] = [*queues] if isinstance(queues, dict) else []
        return cls(names, cast("dict[str, object]", tasks) if isinstance(tasks, dict) else None)

    def may_know(self, task: str, queue: str) -> bool:
        """Whether it may claim jobs of the task from the queue."""
        return queue in self.queues and (self.tasks is None or task in self.tasks)

    def may_run(self, task: str, queue: str, given: Collection[str], *, unlike: Takes) -> bool:
        """Whether it may run such a job, which does not fit the code that takes `unlike`."""
        if not self.may_know(task, queue):
            return False
        takes = None if self.tasks is None else Takes.read(self.tasks[task])
        return takes is None or (takes != unlike and takes.fits(given))


def read_codes(rows: Iterable[Any]) -> list[Code]:
    """Of each pair of queues and tasks."""
    return [Code.read(*row) for row in rows]


def _names(value: object) -> tuple[str, ...]:
    return tuple(map(str, cast("list[object]", value))) if isinstance(value, list) else ()
