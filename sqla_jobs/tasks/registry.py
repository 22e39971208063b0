"""The tasks of one `Jobs`, by name. Looking up an unknown name imports the modules given as `modules=`."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from sqla_jobs.errors import ConfigurationError, DeclarationError, UnknownTask
from sqla_jobs.models.columns import JobMixin
from sqla_jobs.rules.limits import spell_alike
from sqla_jobs.rules.redaction import NOTHING, Secrets
from sqla_jobs.rules.wording import did_you_mean
from sqla_jobs.tasks.encryption import Encryption
from sqla_jobs.tasks.task import Task

J = TypeVar("J", bound=JobMixin)


class Tasks(Mapping[str, Task[..., Any, J]], Generic[J]):
    """Tasks by name and by alias. `tasks["mail.send"]` imports the modules given as `modules=` if necessary."""

    def __init__(self, modules: tuple[str, ...]) -> None:
        for name in modules:
            if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
                raise ConfigurationError(f"modules must hold full names of modules, such as 'shop.mail', got {name!r}")
        self._modules = modules
        self._by_name: dict[str, Task[..., Any, J]] = {}
        self._lock = threading.Lock()

    def add(self, task: Task[..., Any, J]) -> None:
        """Register a task. A function that is declared again (by a reload) replaces its earlier version.

        Raises `DeclarationError` if another task has the same name.
        """
        declaration = task._declaration
        with self._lock:
            for name in (declaration.name, *declaration.aliases):
                other = self._by_name.get(name)
                if other is not None and not _same_place(other, task):
                    raise DeclarationError(
                        f"two tasks are named {name!r}: {other._declaration.signature.place} and "
                        f"{declaration.signature.place}; give one of them another name="
                    )
            for name, other in list(self._by_name.items()):
                if _same_place(other, task) and other.name == declaration.name:
                    del self._by_name[name]
            for name in (declaration.name, *declaration.aliases):
                self._by_name[name] = task
            if declaration.gates:
                spell_alike([gate for one in self._by_name.values() for gate in one._declaration.gates])

    def load(self) -> None:
        """Import the modules given as `modules=`. Raises a `ConfigurationError` that names a missing module."""
        for module in self._modules:
            import_named(module, f"modules=[{module!r}]")

    def complete(self) -> list[str]:
        """Import all tasks, resolve their annotations, and return their names.

        Raises `ConfigurationError` if there is no task, and `DeclarationError` for an unresolvable annotation.
        """
        self.load()
        names = list(self)
        if not names:
            raise ConfigurationError(
                "these jobs have no task: name the modules that declare them, Jobs(…, modules=['shop.mail']), "
                "or import them before the worker starts"
            )
        for name in names:
            self._by_name[name]._declaration.codec.check()
        return names

    def names(self, task: object) -> tuple[str, ...]:
        """Return the names under which jobs of a task are stored, the task's own name first.

        `task` is a task, or one of its names. Raises `UnknownTask`.
        """
        found = task if isinstance(task, Task) else self[str(task)]
        return (found.name, *found._declaration.aliases)

    def shown(self, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return a job's stored arguments without sensitive values. An unknown task's arguments are unchanged."""
        task = self._known(name)
        return dict(arguments) if task is None else task._declaration.shown(arguments)

    def secrets(self, name: str, arguments: object) -> Secrets:
        """Return the secrets among the arguments of a job; none if the task is unknown."""
        task = self._known(name)
        return NOTHING if task is None else task._declaration.secrets(arguments)

    def encryption(self, name: str) -> Encryption | None:
        """Return the encryption of a task's jobs; None if the task is unknown."""
        task = self._known(name)
        return None if task is None else task._declaration.encryption

    def sensitive(self) -> dict[str, frozenset[str]]:
        """Return the sensitive arguments of each task that has any, by name and alias.

        No search may cover these arguments, since a person could guess a hidden value by searching for it.
        """
        self.load()
        return {name: task._declaration.sensitive for name, task in self.items() if task._declaration.sensitive}

    def _known(self, name: object) -> Task[..., Any, J] | None:
        if name not in self._by_name:
            self.load()
        return self._by_name.get(name)  # type: ignore[call-overload, no-any-return]

    def __contains__(self, name: object) -> bool:
        return self._known(name) is not None

    def __getitem__(self, name: str) -> Task[..., Any, J]:
        if (found := self._known(name)) is not None:
            return found
        known = ", ".join(sorted(self._by_name)) or "none at all"
        raise UnknownTask(
            f"no task is named {name!r:.200}; registered: {known}. Give the module that declares it as "
            f"Jobs(…, modules=[…]), or import it first{did_you_mean(name, self._by_name)}"
        )

    def __iter__(self) -> Iterator[str]:
        return iter(dict(self._by_name))

    def __len__(self) -> int:
        return len(self._by_name)


def import_named(module: str, given: str) -> ModuleType:
    """Import a module. `given` is the user's text that names it, for the error message.

    Raises `ConfigurationError` if the module does not exist. Errors that the module raises, even from a failed import,
    propagate unchanged.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise ConfigurationError(
            f"{given}: there is no module {error.name!r} in {Path.cwd()} or among installed packages; "
            "run this in the folder of the application"
        ) from None


def _same_place(one: Task[..., Any, Any], other: Task[..., Any, Any]) -> bool:
    """Return whether both tasks come from one definition: a module was reloaded, or a script was imported, too."""
    a, b = one._declaration.signature, other._declaration.signature
    as_script = "__main__" in (a.module, b.module) and a.code.co_filename == b.code.co_filename
    if a.is_lambda and a.code.co_firstlineno != b.code.co_firstlineno:  # all lambdas of a module share one qualname
        return False
    return a.qualname == b.qualname and (a.module == b.module or as_script)
