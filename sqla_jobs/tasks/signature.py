"""The signature of a task: the injected parameters, which come first, and the arguments."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable
from typing import Any

import typing_extensions
from sqlalchemy.orm import Session, scoped_session

from sqla_jobs.database.engines import is_asynchronous
from sqla_jobs.errors import ArgumentsError, DeclarationError
from sqla_jobs.tasks.run_context import AsyncRunContext, RunContext

IMPORT_IT = "import that name at the top of the module, not only under TYPE_CHECKING"
_ALIASES: tuple[type[Any], ...] = (
    typing_extensions.TypeAliasType,  # a class of its own before Python 3.14
    getattr(typing, "TypeAliasType", typing_extensions.TypeAliasType),
)
_UNRESOLVABLE = (NameError, AttributeError, SyntaxError, TypeError)
_ORDERS: tuple[list[str], ...] = ([], ["session"], ["context"], ["session", "context"])
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclasses.dataclass(frozen=True)
class Signature:
    """A task's function and its parameters."""

    target: Callable[..., Any]
    module: str
    qualname: str
    is_coroutine: bool
    """True for an `async def`, which a worker runs in its event loop."""
    session_class: type[Any] | None
    """The class of session that the task takes: `Session`, `AsyncSession` or a subclass. None without a session."""
    wants_context: bool
    arguments: inspect.Signature
    """The parameters whose values are stored, with their annotations as written."""

    @property
    def wants_session(self) -> bool:
        """True for a transactional task."""
        return self.session_class is not None

    @property
    def is_lambda(self) -> bool:
        """True for a lambda, which has no name of its own."""
        return self.target.__name__ == "<lambda>"

    @property
    def code(self) -> types.CodeType:
        """The code of the function underneath all decorators."""
        code: types.CodeType = inspect.unwrap(self.target).__code__
        return code

    @property
    def place(self) -> str:
        """The location of the declaration, for error messages."""
        return f"{self.module}.{self.qualname} ({self.code.co_filename}:{self.code.co_firstlineno})"

    @property
    def is_closure(self) -> bool:
        """True if the function uses variables of an enclosing function."""
        return bool(set(self.code.co_freevars) - {"__class__"})

    def annotation(self, name: str) -> Any:
        """Return the annotated type of the parameter `name`, or `Any` if it has no annotation."""
        return resolve(self.target, name, self.arguments.parameters[name].annotation)

    @property
    def result(self) -> Any:
        """The annotated return type of the task, or `Any` if it has no annotation."""
        return resolve(self.target, "return", inspect.signature(self.target).return_annotation)

    def bind(self, task: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the given arguments by name. Raises `ArgumentsError`, whose message shows no argument values."""
        try:
            return self.arguments.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise ArgumentsError(f"{task}({self._summary()}): {error}") from None

    def _summary(self) -> str:
        parameters = self.arguments.parameters.values()
        return ", ".join(p.name if p.default is p.empty else f"{p.name}=…" for p in parameters)

    def call(self, injected: list[Any], arguments: dict[str, Any]) -> Any:
        """Run the task."""
        if not self._has_positional_only:
            return self.target(*injected, **arguments)
        bound = inspect.BoundArguments(self.arguments, arguments)
        return self.target(*injected, *bound.args, **bound.kwargs)

    @functools.cached_property
    def by_name(self) -> tuple[frozenset[str], frozenset[str]]:
        """The names of the required arguments, and the names of the arguments that can be passed by keyword."""
        parameters = self.arguments.parameters.values()
        names = frozenset(one.name for one in parameters if one.kind is not one.POSITIONAL_ONLY)
        return frozenset(one.name for one in parameters if one.default is one.empty), names

    @functools.cached_property
    def _has_positional_only(self) -> bool:
        return any(parameter.kind is parameter.POSITIONAL_ONLY for parameter in self.arguments.parameters.values())


def inspect_target(target: Callable[..., Any]) -> Signature:
    """Return the signature of a function. Raises `DeclarationError` with the reason if it cannot be a task."""
    if not inspect.isfunction(target):
        raise DeclarationError(f"{target!r} is a {type(target).__name__}: a task is a plain function")
    _refuse_function(target)
    parameters = list(_signature(target).parameters.values())
    injected, rest = _split(target, parameters)
    return Signature(
        target,
        target.__module__,
        target.__qualname__,
        inspect.iscoroutinefunction(target),
        session_class=_class_of(target, parameters[0]) if "session" in injected else None,
        wants_context="context" in injected,
        arguments=inspect.Signature(rest),
    )


def _refuse_function(target: types.FunctionType) -> None:
    name = target.__qualname__
    if inspect.isgeneratorfunction(target) or inspect.isasyncgenfunction(target):
        raise DeclarationError(f"{name} is a generator: nothing would iterate over it; return a value instead")
    owner, _, _ = name.rpartition(".")
    if owner and not owner.endswith("<locals>"):
        raise DeclarationError(f"{name} is a method: declare the task as a function outside of the class")


def _split(
    function: types.FunctionType, parameters: list[inspect.Parameter]
) -> tuple[list[str], list[inspect.Parameter]]:
    """Return the kinds of the injected parameters, in order, and the other parameters."""
    _refuse_parameters(function.__qualname__, parameters)
    kinds = [_injection(function, parameter) for parameter in parameters]
    _refuse_other_kind(function, kinds)
    kinds = [kind and kind.removeprefix("async ") for kind in kinds]
    leading = [kind for kind in kinds if kind]
    if None in kinds[: len(leading)]:
        argument = parameters[kinds.index(None)]
        resolve(function, argument.name, argument.annotation)  # raises if it is a Session that is not imported
    by_position = all(parameter.kind in _POSITIONAL for parameter in parameters[: len(leading)])
    if kinds[: len(leading)] != leading or leading not in _ORDERS or not by_position:
        kind = "Async" if inspect.iscoroutinefunction(function) else ""
        raise DeclarationError(
            f"{function.__qualname__}: injected parameters come first, by position and each at most once: "
            f"(session: {kind}Session, run: {kind}RunContext, …)"
        )
    return leading, parameters[len(leading) :]


def _refuse_other_kind(function: types.FunctionType, injected: list[str | None]) -> None:
    is_coroutine = inspect.iscoroutinefunction(function)
    named = {"session": "its session as {}Session", "context": "its run as {}RunContext"}
    for kind in filter(None, injected):
        if kind.startswith("async ") != is_coroutine:
            right = named[kind.removeprefix("async ")].format("Async" if is_coroutine else "")
            what = "a coroutine" if is_coroutine else "a plain function"
            raise DeclarationError(f"{function.__qualname__} is {what}: annotate {right}")


def _refuse_parameters(name: str, parameters: list[inspect.Parameter]) -> None:
    for parameter in parameters:
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            raise DeclarationError(f"{name} takes {parameter}: arguments are stored by name and type, so name each one")
    if parameters and parameters[0].name == "session" and parameters[0].annotation is inspect.Parameter.empty:
        raise DeclarationError(
            f"{name}: 'session' has no annotation: annotate it as Session, to be given that of the run; or give an "
            "argument another name"
        )


def _injection(owner: Callable[..., Any], parameter: inspect.Parameter) -> str | None:
    try:
        annotation = resolve(owner, parameter.name, parameter.annotation)
    except DeclarationError:
        return None  # the name is defined later, and the first enqueue resolves it
    return injection_of(owner.__qualname__, parameter.name, annotation)


def _class_of(owner: Callable[..., Any], parameter: inspect.Parameter) -> type[Any]:
    """Return the class of an injected parameter."""
    annotation = underlying(resolve(owner, parameter.name, parameter.annotation))
    found: type[Any] = typing.get_origin(annotation) or annotation
    return found


def injection_of(owner: str, name: str, annotation: Any) -> str | None:
    """Return the kind of an injected parameter, such as "session" or "async context"; `None` for an argument."""
    annotation = underlying(annotation)
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType) and any(injection_of(owner, name, arg) for arg in args):
        raise DeclarationError(
            f"{owner}: {name!r} is injected: annotate it with one type, such as Session or RunContext"
        )
    annotation = origin or annotation
    if not isinstance(annotation, type):
        return None
    kind = "AsyncSession" if is_asynchronous(annotation) else "Session"
    if issubclass(annotation, scoped_session) or (kind == "AsyncSession" and not _has_name(annotation, kind)):
        raise DeclarationError(
            f"{owner}: {name!r} is a {annotation.__name__}, but each run has its own {kind}: annotate it as {kind}"
        )
    if issubclass(annotation, Session):
        return "session"
    if kind == "AsyncSession":
        return "async session"
    if issubclass(annotation, AsyncRunContext):
        return "async context"
    return "context" if issubclass(annotation, RunContext) else None


def underlying(annotation: Any) -> Any:
    """Return the type that an `Annotated`, an alias, a `NewType` or a bound type variable stands for.

    Return an alias itself if it names something that is not defined yet.
    """
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return underlying(args[0])
    alias = origin if isinstance(origin, _ALIASES) else annotation
    try:
        if isinstance(alias, _ALIASES):
            return underlying(_with_arguments(_value_of(alias, "__value__"), alias.__type_params__, args))
        if isinstance(annotation, typing.NewType):
            return underlying(_value_of(annotation, "__supertype__"))
        if isinstance(annotation, typing.TypeVar) and annotation.__bound__ is not None:
            return underlying(_value_of(annotation, "__bound__"))
    except _UNRESOLVABLE:
        return annotation
    return annotation


def _value_of(named: Any, attribute: str) -> Any:
    """Return what an alias, a `NewType` or a type variable was made of, which may be written as a string."""
    scope = vars(sys.modules[named.__module__]) if named.__module__ in sys.modules else {}
    return _hint(attribute, getattr(named, attribute), scope)


def _with_arguments(value: Any, parameters: tuple[Any, ...], arguments: tuple[Any, ...]) -> Any:
    """Return the value of a generic alias for these arguments: `type A[T] = Annotated[T, …]` as `A[Session]`."""
    given = dict(zip(parameters, arguments, strict=False))  # a parameter may have a default
    if isinstance(value, typing.TypeVar):
        return given.get(value, value)
    if isinstance(value, type):
        return value
    wanted: tuple[Any, ...] = getattr(value, "__parameters__", ())
    return value[tuple(given.get(one, one) for one in wanted)] if wanted else value


def _has_name(kind: type[Any], name: str) -> bool:
    return any(base.__name__ == name for base in kind.__mro__)


def _signature(target: Callable[..., Any]) -> inspect.Signature:
    if sys.version_info >= (3, 14):
        import annotationlib

        return inspect.signature(target, annotation_format=annotationlib.Format.FORWARDREF)
    return inspect.signature(target)


def resolve(owner: Callable[..., Any], name: str, annotation: Any) -> Any:
    """Resolve an annotation to a type. Raises `DeclarationError` with the annotation and the cause."""
    if annotation is inspect.Parameter.empty:
        return Any
    try:
        return _hint(name, annotation, _scope(owner, name))
    except _UNRESOLVABLE as error:
        raise DeclarationError(
            f"{owner.__qualname__}: the annotation {annotation!r} of {name!r} cannot be resolved ({error}); {IMPORT_IT}"
        ) from None


def _hint(name: str, annotation: Any, scope: dict[str, Any]) -> Any:
    holder = types.SimpleNamespace(__annotations__={name: annotation})
    return typing.get_type_hints(holder, scope, {}, include_extras=True)[name]


def _scope(owner: Callable[..., Any], name: str) -> dict[str, Any]:
    """Return the names that an annotation can use: those of the module that contains it."""
    scope: dict[str, Any] = inspect.unwrap(owner).__globals__
    return scope
