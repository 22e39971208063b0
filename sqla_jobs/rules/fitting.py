"""The arguments that each process's tasks take, as published in the processes' rows."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, cast

UNFIT = "its arguments do not fit this code"
"""The beginning of the reason why a process passes over a job that other processes may run."""

MOST_PASSED_OVER = 100
"""Maximum number of jobs that a process passes over at a time. Each claim reads their ids; further jobs are delayed."""


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


@dataclass(frozen=True, slots=True)
class Code:
    """The queues that a live worker serves, and the arguments of the tasks that it knows."""

    queues: Collection[str]
    tasks: dict[str, object] | None
    """`None` for a worker of an older version, which does not publish its tasks."""

    @classmethod
    def read(cls, queues: object, tasks: object) -> Code:
        """Parse the columns of a process's row."""
        names: list[str] = [*queues] if isinstance(queues, dict) else []
        return cls(names, cast("dict[str, object]", tasks) if isinstance(tasks, dict) else None)

    def may_know(self, task: str, queue: str) -> bool:
        """Return whether the worker may claim jobs of the task from the queue."""
        return queue in self.queues and (self.tasks is None or task in self.tasks)

    def may_run(self, task: str, queue: str, given: Collection[str], *, unlike: Takes) -> bool:
        """Return whether the worker may be able to run a job that other code cannot run.

        The other code takes `unlike`, which the job's arguments do not fit.
        """
        if not self.may_know(task, queue):
            return False
        takes = None if self.tasks is None else Takes.read(self.tasks[task])
        return takes is None or (takes != unlike and takes.fits(given))


def read_codes(rows: Iterable[Any]) -> list[Code]:
    """Parse rows of queues and tasks."""
    return [Code.read(*row) for row in rows]


def _names(value: object) -> tuple[str, ...]:
    return tuple(map(str, cast("list[object]", value))) if isinstance(value, list) else ()
