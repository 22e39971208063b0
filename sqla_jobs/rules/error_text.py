"""The text of exceptions, without the application's data that database errors show.

SQLAlchemy shows a statement's parameters, and PostgreSQL shows the refused row (DETAIL, CONTEXT). Parameters and rows
may contain any task's data, so they are not kept. The server's primary message and the SQL are kept.
"""

from __future__ import annotations

import re
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

_LIBRARY = str(Path(__file__).parents[1])
_STANDARD_LIBRARY = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib")})
_PLACE = re.compile(r'^  (File "(.*)", line \d+, in .*)$', re.MULTILINE)
"""Matches the line of a stack that names a place. Group 1 is the line, group 2 the file."""
_INSTALLED = re.compile(r".*[/\\](?:site|dist)-packages[/\\][^/\\]+")
"""Matches the path of an installed package, up to the package's name."""
_STAND_INS = "sqlalchemy.dialects.postgresql.asyncpg"
"""The module of SQLAlchemy's stand-ins for asyncpg's errors. In some versions their text includes DETAIL."""
_AFTER_FIRST_LINE = re.compile(r"(Original exception was: [^\n]*).*", re.DOTALL)
"""Matches the earlier error in the text of a `PendingRollbackError`. Group 1 contains that error's primary message."""


def leaves(error: BaseException) -> list[BaseException]:
    """Return the errors in a group and in its nested groups, or `[error]` for any other error. Never raises."""
    found: list[BaseException] = []
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if isinstance(one, BaseExceptionGroup) and (parts := _part(one, "exceptions")):
            waiting += parts[::-1]
        else:
            found.append(one)
    return found


def message_of(error: BaseException) -> str:
    """Return `str(error)` without the application's data that the database and SQLAlchemy add. Never raises."""
    return _without(_data_of(error), _own_message(error))


def traceback_of(error: BaseException, clean: Callable[[str], str]) -> str:
    """Return the traceback with all causes, each message passed through `clean`. Never raises."""
    data = _data_of(error)
    try:
        shown = traceback.TracebackException.from_exception(error)
        _begin_at_the_task(shown)
        _replace_messages(shown, lambda text: clean(_without(data, text)))
        return "".join(shown.format())
    except BaseException:  # noqa: BLE001 - an error must be shown whatever its methods do
        return f"<its traceback cannot be written: {clean(_without(data, _own_message(error)))}>"


def stack_of(frame: FrameType, *, since: str | None = None) -> str:
    """Return the stack of a thread that runs a job, from the task on. Omit the callers of the function `since`."""
    stack = traceback.extract_stack(frame)
    if places := [place for place, one in enumerate(stack) if one.name == since and one.filename.startswith(_LIBRARY)]:
        del stack[: places[-1]]
    is_ours = [one.filename.startswith(_LIBRARY) for one in stack]
    task = [place for place in range(1, len(stack)) if is_ours[place - 1] and not is_ours[place]]
    return "".join(traceback.format_list(stack[task[0] if task else 0 :]))


def stack_of_frames(frames: Iterable[FrameType]) -> str:
    """Return the stack of a coroutine from its frames, the outermost first."""
    return "".join(traceback.StackSummary.extract((frame, frame.f_lineno) for frame in frames).format())


def place_of(stack: str) -> str:
    """Return the line of a formatted stack that names the innermost place in the application's own code.

    The application's code is what is neither in the standard library nor in an installed package. If the task is in an
    installed package, so is the application. Without such a place, return the innermost one, or an empty string.
    """
    places = [(match[1], _package_of(match[2])) for match in _PLACE.finditer(stack)]
    of_application = {"", *(package for _, package in places[:1] if package not in (None, _LIBRARY))}
    own = [line for line, package in places if package in of_application]
    return (own or [line for line, _ in places] or [""])[-1]


def _package_of(file: str) -> str | None:
    """Return the path of the installed package that contains a file, "" for none, None for the standard library."""
    if file.startswith(_LIBRARY):
        return _LIBRARY
    if (installed := _INSTALLED.match(file)) is not None:
        return installed[0]
    return None if file.startswith(("<", *_STANDARD_LIBRARY)) else ""


def _begin_at_the_task(shown: traceback.TracebackException) -> None:
    """Remove this library's frames that precede the first frame of other code."""
    ours = next((place for place, frame in enumerate(shown.stack) if not frame.filename.startswith(_LIBRARY)), 0)
    del shown.stack[:ours]


def _replace_messages(shown: Any, clean: Callable[[str], str]) -> None:
    waiting = [shown]
    while waiting:
        one = waiting.pop()
        # this is the only way to change the message and keep what Python adds to it, such as "Did you mean"
        one._str = clean(one._str)
        if isinstance(one.__notes__, list):
            one.__notes__ = [clean(_text_of(note)) for note in one.__notes__]
        below = (one.__cause__, one.__context__, *(one.exceptions or ()))
        waiting += [other for other in below if other is not None]


def _own_message(error: BaseException) -> str:
    return _of_database(error) or _text_of(error)


def _of_database(error: BaseException) -> str | None:
    """Return the message to keep of an SQLAlchemy or driver error; None for any other error.

    These errors are recognized by their names and attributes.
    """
    kind = type(error)
    if kind.__name__ == "PendingRollbackError":
        return _AFTER_FIRST_LINE.sub(r"\1", _text_of(error))
    if kind.__module__.partition(".")[0] == "asyncpg" and error.args:
        return _text_of(error.args[0])
    original = _original(error)
    if original is None:
        primary: str | None = _part(_part(error, "diag"), "message_primary")
        return primary
    if kind.__module__ == _STAND_INS:
        return _own_message(original)
    while type(original).__module__ == _STAND_INS and (below := _original(original)) is not None:
        original = below
    kind, statement, details = type(original), _part(error, "statement"), _part(error, "detail")
    lines = [f"({detail})" for detail in details] if isinstance(details, list) else []
    lines.append(f"({kind.__module__}.{kind.__qualname__}) {_own_message(original)}")
    return "\n".join([*lines, f"[SQL: {statement}]"] if statement else lines)


def _original(error: BaseException) -> BaseException | None:
    """Return the driver's error in an SQLAlchemy error. Before version 2.1, a stand-in holds it only as its cause."""
    found = _part(error, "orig")
    if found is None and type(error).__module__ == _STAND_INS:
        found = error.__cause__
    return found if isinstance(found, BaseException) else None


def _part(owner: object, name: str) -> Any:
    """Return an attribute; `None` if it is missing or raises."""
    try:
        return getattr(owner, name)
    except BaseException:  # noqa: BLE001
        return None


def _text_of(value: object) -> str:
    try:
        return str(value)
    except BaseException as unprintable:  # noqa: BLE001
        return f"<its __str__ raised {type(unprintable).__name__}>"


def _data_of(error: BaseException) -> list[tuple[str, str]]:
    """Return the full texts of all database errors in `_all_below`, longest first, each with its replacement."""
    found: dict[str, str] = {}
    for one in _all_below(error):
        full, shown = _text_of(one), _own_message(one)
        if full not in ("", shown):
            found[full] = shown
            found[repr(full)[1:-1]] = repr(shown)[1:-1]
    return sorted(found.items(), key=lambda pair: len(pair[0]), reverse=True)


def _without(data: list[tuple[str, str]], text: str) -> str:
    for full, shown in data:
        text = text.replace(full, shown)
    return text


def _all_below(error: BaseException) -> Iterator[BaseException]:
    """Yield `error`, its causes and contexts, and the members of groups among them."""
    waiting: list[Any] = [error]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop()
        if isinstance(one, BaseException) and id(one) not in seen:
            seen.add(id(one))
            yield one
            waiting += [one.__cause__, one.__context__, _part(one, "orig"), *(_part(one, "exceptions") or ())]
