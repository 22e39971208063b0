"""What a task asks for: which leading parameters are injected, and which are arguments."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from sqla_jobs.context import RunContext
from sqla_jobs.errors import ArgumentsError, DeclarationError

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclasses.dataclass(frozen=True)
class Signature:
    """A task's target (a function, or a class with `execute`) and what it is called with."""

    target: Callable[..., Any]
    module: str
    qualname: str
    wants_session: bool
    wants_context: bool
    arguments: inspect.Signature
    """The parameters that are stored, annotations as written."""

    @property
    def place(self) -> str:
        """Where it is declared, for people."""
        code = getattr(self.target, "__code__", None)
        return f"{self.module}.{self.qualname}" + (f" ({code.co_filename}:{code.co_firstlineno})" if code else "")

    def annotation(self, name: str) -> Any:
        """The type that parameter `name` is annotated with, `Any` without an annotation."""
        return _resolve(self.target, name, self.arguments.parameters[name].annotation)

    def bind(self, task: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The given arguments by name. Raises `ArgumentsError`; no message of it shows a value."""
        try:
            return self.arguments.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise ArgumentsError(f"{task}{self.arguments.replace(return_annotation=_EMPTY)}: {error}") from None

    def call(self, injected: list[Any], arguments: dict[str, Any]) -> Any:
        """Run the task."""
        if isinstance(self.target, type):
            return self.target(**arguments).execute(*injected)
        bound = inspect.BoundArguments(self.arguments, arguments)
        return self.target(*injected, *bound.args, **bound.kwargs)


_EMPTY = inspect.Signature.empty


def inspect_target(target: Callable[..., Any]) -> Signature:
    """Look at a function or a class. Raises `DeclarationError` with the reason it cannot be a task."""
    if isinstance(target, type):
        return _inspect_class(target)
    if not inspect.isfunction(target):
        kind = "a partial" if isinstance(target, functools.partial) else "a bound method"
        if not isinstance(target, functools.partial | types.MethodType):
            kind = f"a {type(target).__name__}"
        raise DeclarationError(f"{target!r} is {kind}: a task is a plain function or a dataclass with execute()")
    _refuse_function(target)
    parameters = list(_signature(target).parameters.values())
    injected, rest = _split(target, parameters)
    return Signature(
        target,
        target.__module__,
        target.__qualname__,
        wants_session="session" in injected,
        wants_context="context" in injected,
        arguments=inspect.Signature(rest),
    )


def _refuse_function(target: types.FunctionType) -> None:
    name = target.__qualname__
    if target.__name__ == "<lambda>":
        raise DeclarationError(f"{name} is a lambda: a task needs a stable name, so write a def")
    if _is_async(target):
        raise DeclarationError(f"{name} is a coroutine: write a plain def, with asyncio.run(…) inside where needed")
    if inspect.isgeneratorfunction(target):
        raise DeclarationError(f"{name} is a generator: nothing would iterate over it; return a value instead")
    owner, _, _ = name.rpartition(".")
    if owner and not owner.endswith("<locals>"):
        raise DeclarationError(f"{name} is a method: declare the task as a function outside of the class")


def _is_async(target: Any) -> bool:
    return inspect.iscoroutinefunction(target) or inspect.isasyncgenfunction(target)


def _inspect_class(target: type[Any]) -> Signature:
    name = target.__qualname__
    execute = inspect.getattr_static(target, "execute", None)
    if not inspect.isfunction(execute):
        raise DeclarationError(f"{name} has no method execute(self): that is what a task of the class form runs")
    if _is_async(execute) or inspect.isgeneratorfunction(execute):
        raise DeclarationError(f"{name}.execute is a coroutine or generator: write a plain def")
    if not (dataclasses.is_dataclass(target) or issubclass(target, BaseModel)):
        raise DeclarationError(
            f"{name} is neither a dataclass nor a pydantic model, so its arguments are not known: "
            "write @jobs.task above @dataclass"
        )
    own, *parameters = _signature(execute).parameters.values()
    injected, rest = _split(execute, parameters)
    if rest:
        raise DeclarationError(
            f"{name}.execute(…, {rest[0].name}) can only take an injected Session and RunContext: "
            f"arguments are fields of {name}"
        )
    del own
    fields = list(_signature(target).parameters.values())
    _refuse_parameters(name, fields)
    return Signature(
        target,
        target.__module__,
        name,
        wants_session="session" in injected,
        wants_context="context" in injected,
        arguments=inspect.Signature(fields),
    )


def _split(
    function: types.FunctionType, parameters: list[inspect.Parameter]
) -> tuple[list[str], list[inspect.Parameter]]:
    """What is injected, in order, and the parameters after that."""
    _refuse_parameters(function.__qualname__, parameters)
    kinds = [_injection(function, parameter) for parameter in parameters]
    leading = [kind for kind in kinds[:2] if kind]
    if len(leading) != len([kind for kind in kinds if kind]) or kinds[: len(leading)] != leading:
        late = next(p.name for p, kind in list(zip(parameters, kinds, strict=True))[::-1] if kind)
        raise DeclarationError(
            f"{function.__qualname__}: injected parameters come first, so move {late!r} to the front"
        )
    if leading not in ([], ["session"], ["context"], ["session", "context"]):
        raise DeclarationError(
            f"{function.__qualname__}: the order is (session: Session, run: RunContext, …), each at most once"
        )
    for parameter in parameters[: len(leading)]:
        if parameter.kind not in _POSITIONAL:
            raise DeclarationError(
                f"{function.__qualname__}: {parameter.name!r} is injected by position, so it cannot be keyword-only"
            )
    return [kind for kind in leading if kind], parameters[len(leading) :]


def _refuse_parameters(name: str, parameters: list[inspect.Parameter]) -> None:
    for parameter in parameters:
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            raise DeclarationError(f"{name} takes {parameter}: arguments are stored by name and type, so name each one")


def _injection(function: types.FunctionType, parameter: inspect.Parameter) -> str | None:
    try:
        annotation = _resolve(function, parameter.name, parameter.annotation)
    except DeclarationError:
        return None  # a name defined later: the arguments' types are resolved at the first enqueue
    return injection_of(function.__qualname__, parameter.name, annotation)


def injection_of(owner: str, name: str, annotation: Any) -> str | None:
    """Whether a parameter of that type is injected: "session", "context" or `None`."""
    if not isinstance(annotation, type):
        return None
    if issubclass(annotation, AsyncSession):
        raise DeclarationError(f"{owner}: {name!r} is an AsyncSession, but tasks run in threads: take a Session")
    if issubclass(annotation, Session):
        return "session"
    return "context" if issubclass(annotation, RunContext) else None


def _signature(target: Callable[..., Any]) -> inspect.Signature:
    if sys.version_info >= (3, 14):
        import annotationlib

        return inspect.signature(target, annotation_format=annotationlib.Format.FORWARDREF)
    return inspect.signature(target)


def _resolve(owner: Callable[..., Any], name: str, annotation: Any) -> Any:
    """The annotation as a type; a `DeclarationError` that names what could not be found."""
    if annotation is inspect.Parameter.empty:
        return Any
    holder = types.SimpleNamespace(__annotations__={name: annotation})
    module = sys.modules.get(owner.__module__)
    scope = getattr(owner, "__globals__", None) or (vars(module) if module else {})
    try:
        return typing.get_type_hints(holder, scope, {}, include_extras=True)[name]
    except (NameError, AttributeError, SyntaxError, TypeError) as error:
        raise DeclarationError(
            f"{owner.__qualname__}: the annotation {annotation!r} of {name!r} cannot be resolved ({error}); "
            "import that name at the top of the module, not only under TYPE_CHECKING"
        ) from None
