"""Sessions of the class that a task's annotation names, whatever class of session is bound."""

from __future__ import annotations

import sys
from collections.abc import Callable
from copy import copy
from typing import Any, TypeVar

from sqlalchemy.orm import sessionmaker

from sqla_jobs.errors import ConfigurationError

M = TypeVar("M", bound=Callable[[], Any])


def making(make: M, kind: type[Any], task: str) -> M:
    """Return a factory for sessions of the class `kind`, with the options and listeners of the factory `make`.

    Return `make` itself if it makes such sessions already. Return it also if it makes sessions of an unrelated class:
    `check_class` refuses these. Raises `ConfigurationError` if a session of `kind` needs more than these options.
    """
    made: type[Any] | None = getattr(make, "class_", None)
    if made is None or issubclass(made, kind):
        return make
    is_derived = isinstance(make, sessionmaker)  # its class is a subclass of the given one, and has the listeners
    if not issubclass(kind, made.__bases__[0] if is_derived else made):
        return make
    chosen: Any = copy(make)  # the copy shares its options with `make`, whose owner may change them
    chosen.class_ = type(kind.__name__, (made, kind), {}) if is_derived else kind
    try:
        chosen()
    except TypeError as error:
        raise ConfigurationError(
            f"{task} takes a {name_of(kind)}, which cannot be made as what is bound makes sessions ({error}): "
            "bind a function that returns a new one, or annotate its session otherwise"
        ) from None
    return chosen  # type: ignore[no-any-return]


def check_class(session: object, kind: type[Any], task: str) -> None:
    """Raise `ConfigurationError` unless the bound session is an instance of the class in the task's annotation."""
    if not isinstance(session, kind):
        raise ConfigurationError(
            f"{task} takes a {name_of(kind)}, and what is bound makes sessions of {name_of(type(session))}: bind a "
            f"sessionmaker(engine, class_={kind.__name__}), or annotate its session as the class that is bound"
        )


def name_of(kind: type[Any]) -> str:
    """Return the name under which a class can be imported.

    For a class that a sessionmaker derived, return the name of its base.
    """
    found = (one for one in kind.__mro__ if getattr(sys.modules.get(one.__module__), one.__name__, None) is one)
    known = next((one for one in found if one is not object), kind)
    return f"{known.__module__}.{known.__qualname__}"
