"""What is told of an exception: errors of the database without the application's data. Pure.

SQLAlchemy shows the parameters of a statement, and PostgreSQL the row that it refuses (DETAIL, CONTEXT). Both are
data of the application's, of any task, and neither is kept: the server's primary message and the SQL are.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, cast

_LIBRARY = str(Path(__file__).parents[1])
_STAND_INS = "sqlalchemy.dialects.postgresql.asyncpg"
"""The module of the errors that stand for asyncpg's. In some versions their text has DETAIL."""
_AFTER_FIRST_LINE = re.compile(r"(Original exception was: [^\n]*).*", re.DOTALL)
"""What a `PendingRollbackError` repeats of the error before it. The first line has the primary message."""


def leaves(error: BaseException) -> list[BaseException]:
    """What `error` is a group of, also of groups; itself where it is none. Never raises."""
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
    """`str(error)` without what the database and SQLAlchemy add of the application's data. Never raises."""
    return _without(_data_of(error), _own_message(error))


def traceback_of(error: BaseException, clean: Callable[[str], str]) -> str:
    """The traceback with all causes, each message passed through `clean`. Never raises."""
    data = _data_of(error)
    try:
        told = traceback.TracebackException.from_exception(error)
        _begin_at_the_task(told)
        _retell(told, error, lambda text: clean(_without(data, text)))
        return "".join(told.format())
    except BaseException:  # noqa: BLE001 - nothing that an error does may stop its being told
        return f"<its traceback cannot be written: {clean(_without(data, _own_message(error)))}>"


def stack_of(frame: FrameType, *, since: str | None = None) -> str:
    """Where a thread is that runs a job, from the task on; after this library's function `since` if it is there."""
    stack = traceback.extract_stack(frame)
    if places := [place for place, one in enumerate(stack) if one.name == since and one.filename.startswith(_LIBRARY)]:
        del stack[: places[-1]]
    is_ours = [one.filename.startswith(_LIBRARY) for one in stack]
    task = [place for place in range(1, len(stack)) if is_ours[place - 1] and not is_ours[place]]
    return "".join(traceback.format_list(stack[task[0] if task else 0 :]))


def stack_of_frames(frames: Iterable[FrameType]) -> str:
    """The same of a coroutine's frames, the outermost first."""
    return "".join(traceback.StackSummary.extract((frame, frame.f_lineno) for frame in frames).format())


def _begin_at_the_task(told: traceback.TracebackException) -> None:
    """Leave out the frames of this library that lead to the application's."""
    ours = next((place for place, frame in enumerate(told.stack) if not frame.filename.startswith(_LIBRARY)), 0)
    del told.stack[:ours]


def _retell(told: Any, error: BaseException, clean: Callable[[str], str]) -> None:
    """Replace the messages in `told`, which was made of `error`."""
    waiting: list[tuple[Any, Any]] = [(told, error)]
    while waiting:
        told, error = waiting.pop()
        # its one way to another message; what Python adds to its own ones ("Did you mean") stays
        told._str = clean(_of_database(error) or told._str)
        notes = getattr(told, "__notes__", None)
        if isinstance(notes, list):
            told.__notes__ = [clean(_text_of(note)) for note in cast("list[object]", notes)]
        pairs: list[tuple[Any, Any]] = [
            (told.__cause__, error.__cause__),
            (told.__context__, error.__context__),
            *zip(told.exceptions or (), _part(error, "exceptions") or (), strict=False),
        ]
        waiting += [(one, cause) for one, cause in pairs if one is not None and cause is not None]


def _own_message(error: BaseException) -> str:
    return _of_database(error) or _text_of(error)


def _of_database(error: BaseException) -> str | None:
    """What is kept of errors of SQLAlchemy's and of drivers, which are known by their names and attributes."""
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
    """The error of a driver that one of SQLAlchemy's was made of. Before 2.1 a stand-in has it as its cause alone."""
    found = _part(error, "orig")
    if found is None and type(error).__module__ == _STAND_INS:
        found = error.__cause__
    return found if isinstance(found, BaseException) else None


def _part(owner: object, name: str) -> Any:
    """An attribute, `None` where there is none, or where looking at it raises."""
    try:
        return getattr(owner, name, None)
    except BaseException:  # noqa: BLE001
        return None


def _text_of(value: object) -> str:
    try:
        return str(value)
    except BaseException as unprintable:  # noqa: BLE001
        return f"<its __str__ raised {type(unprintable).__name__}>"


def _data_of(error: BaseException) -> list[tuple[str, str]]:
    """How errors of the database print themselves, anywhere below `error`, and what is told instead."""
    found: dict[str, str] = {}
    for one in _all_below(error):
        full, told = _text_of(one), _own_message(one)
        if full != told:
            found[full] = told
            found[repr(full)[1:-1]] = repr(told)[1:-1]
    return sorted(found.items(), key=lambda pair: len(pair[0]), reverse=True)


def _without(data: list[tuple[str, str]], text: str) -> str:
    for full, told in data:
        text = text.replace(full, told)
    return text


def _all_below(error: BaseException) -> Iterator[BaseException]:
    """It, its causes, and the members of groups."""
    waiting: list[Any] = [error]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop()
        if isinstance(one, BaseException) and id(one) not in seen:
            seen.add(id(one))
            yield one
            waiting += [one.__cause__, one.__context__, _part(one, "orig"), *(_part(one, "exceptions") or ())]
