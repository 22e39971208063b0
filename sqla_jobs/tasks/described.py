"""Makes the `enqueue` method of each task, so that `help()` and `inspect.signature` show the task's arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, Protocol

from sqlalchemy.orm import Session

from sqla_jobs.errors import DeclarationError
from sqla_jobs.models.columns import JobMixin
from sqla_jobs.tasks.declaration import Declaration
from sqla_jobs.tasks.sessions import AnySession

_PROMISE = "The job exists if and only if the caller's transaction commits; `enqueue` itself commits nothing."
_RETURNED = """Returns the job, pending like any object that was added. A job with a unique key is in the database
already: it is new, or it is the live job that has the key, as `is_new` says."""
_RAISED = """Raises `ArgumentsError`, having changed nothing, for a session that is missing or asynchronous, and for
arguments that do not fit the task or cannot be stored; `DeclarationError` if an annotation of the task
cannot be resolved; `JobExists` if `Unique(on_conflict="raise")` finds its key taken."""
_SESSION = "- `session`: the `Session` or `scoped_session` of the caller."


class _Adds(Protocol):
    def _add(self, session: AnySession | None, args: tuple[Any, ...], kwargs: dict[str, Any], /) -> Any: ...

    def _add_at_commit(self, session: AnySession | None, args: tuple[Any, ...], kwargs: dict[str, Any], /) -> None: ...


def enqueue(enqueuer: _Adds, session: AnySession | None = None, /, *args: Any, **kwargs: Any) -> JobMixin:
    job: JobMixin = enqueuer._add(session, args, kwargs)
    return job


enqueue.__qualname__ = "Enqueuer.enqueue"
enqueue.__doc__ = f"""Add a job of the task to the caller's session, and return it.

{_PROMISE}

{_SESSION}
- `*args`, `**kwargs`: the arguments of the task, by position or by name, without injected parameters.

{_RETURNED}

{_RAISED}
"""


def enqueue_at_commit(enqueuer: _Adds, session: AnySession | None = None, /, *args: Any, **kwargs: Any) -> None:
    enqueuer._add_at_commit(session, args, kwargs)


enqueue_at_commit.__qualname__ = "Enqueuer.enqueue_at_commit"
enqueue_at_commit.__doc__ = f"""Add a job of the task in the last moment of the caller's transaction.

{_PROMISE}

{_SESSION}
- `*args`, `**kwargs`: the arguments of the task, by position or by name, without injected parameters.

The jobs of a transaction are written after its last flush, in the order of their unique keys, so transactions that
enqueue the same keys in this way do not deadlock, and wait for each other only while they commit. The last enqueue of a
key in the transaction wins.

Raises `ArgumentsError` for arguments that do not fit, for `after=` and `batch=`, for the policy "raise", and for a
session with two-phase commits.
"""


class DescribedEnqueue:
    """The `enqueue` method of one task."""

    def __init__(self, declaration: Declaration, job_class: type[Any]) -> None:
        self._declaration = declaration
        self._job_class = job_class

    @cached_property
    def function(self) -> Callable[..., Any]:
        """The function to bind to an enqueuer. It is made on first use: annotations may be unresolvable earlier."""

        def enqueue(enqueuer: _Adds, session: AnySession | None = None, /, *args: Any, **kwargs: Any) -> Any:
            return enqueuer._add(session, args, kwargs)

        arguments = [self._shown(parameter) for parameter in self._declaration.signature.arguments.parameters.values()]
        enqueue.__qualname__ = "Enqueuer.enqueue"
        enqueue.__doc__ = "\n".join(self._help(arguments))
        enqueue.__signature__ = self._signature(arguments)  # type: ignore[attr-defined]
        return enqueue

    def _shown(self, parameter: inspect.Parameter) -> inspect.Parameter:
        """Return the parameter with its annotation resolved, or unchanged if that is not possible yet."""
        if parameter.annotation is parameter.empty:
            return parameter
        try:
            return parameter.replace(annotation=self._declaration.signature.annotation(parameter.name))
        except DeclarationError:
            return parameter

    def _signature(self, arguments: list[inspect.Parameter]) -> inspect.Signature:
        taken = {argument.name for argument in arguments}
        own = [
            inspect.Parameter(_free(name, taken), inspect.Parameter.POSITIONAL_ONLY, annotation=annotation)
            for name, annotation in (("enqueuer", inspect.Parameter.empty), ("session", Session))
        ]
        return inspect.Signature([*own, *arguments], return_annotation=self._job_class)

    def _help(self, arguments: list[inspect.Parameter]) -> Iterator[str]:
        yield f"Add a job of the task `{self._declaration.name}` to the caller's session, and return it."
        yield f"\n{_PROMISE}\n\n{_SESSION}"
        for argument in arguments:
            kind = "" if argument.annotation is argument.empty else inspect.formatannotation(argument.annotation)
            default = "" if argument.default is argument.empty else f"by default {argument.default!r}"
            yield f"- `{argument.name}`: {', '.join(filter(None, (kind, default))) or 'any type'}"
        if not arguments:
            yield "\nThe task takes no arguments."
        yield f"\n{_RETURNED}\n\n{_RAISED}"


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name
