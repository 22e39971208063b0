"""Calls back once what a session has done is committed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Engine, event
from sqlalchemy.orm import Session, SessionTransaction

log: logging.Logger = logging.getLogger("sqla_jobs.database.commits")

_INFO = "sqla_jobs.database.commits"


class _Call(NamedTuple):
    within: SessionTransaction | None
    """The savepoint that it was asked for in, or else the outermost transaction."""
    entity: type[Any]
    call: Callable[[], None]


class _Waiting:
    """What one session is to call after its present transaction."""

    def __init__(self) -> None:
        self.calls: list[_Call] = []
        self.committed = False


def on_commit(session: Session, entity: type[Any], call: Callable[[], None]) -> None:
    """Call once the session's outermost transaction commits, unless the present savepoint is rolled back before.

    Never if the session is joined to a connection of the database of `entity`: nobody tells it when that commits.
    """
    _listen_to_sessions()
    waiting: _Waiting = session.info.setdefault(_INFO, _Waiting())
    waiting.calls.append(_Call(session.get_nested_transaction() or session.get_transaction(), entity, call))


@cache
def _listen_to_sessions() -> None:
    event.listen(Session, "after_commit", _note_commit)
    event.listen(Session, "after_soft_rollback", _forget)
    event.listen(Session, "after_transaction_end", _call)


def _note_commit(session: Session) -> None:
    waiting: _Waiting | None = session.info.get(_INFO)
    if waiting and not session.in_nested_transaction():  # SQLAlchemy 2.1 also tells of released savepoints
        waiting.committed = True


def _forget(session: Session, rolled_back: SessionTransaction) -> None:
    """What was asked for since a savepoint began comes last."""
    waiting: _Waiting | None = session.info.get(_INFO)
    while waiting and waiting.calls and _is_within(waiting.calls[-1].within, rolled_back):
        waiting.calls.pop()


def _is_within(transaction: SessionTransaction | None, outer: SessionTransaction) -> bool:
    while transaction is not None and transaction is not outer:
        transaction = transaction.parent
    return transaction is outer


def _call(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is not None or _INFO not in session.info:
        return
    waiting: _Waiting = session.info.pop(_INFO)
    for one in waiting.calls if waiting.committed else ():
        try:
            if isinstance(session.get_bind(one.entity), Engine):
                one.call()
        except Exception:
            log.exception("a callback after a commit raised")
