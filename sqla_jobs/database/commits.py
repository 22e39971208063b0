"""What there is to know about commits of sessions: who is called back after one, and what cannot be done during one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Hashable
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import InvalidRequestError, PendingRollbackError
from sqlalchemy.orm import Session, SessionTransaction

from sqla_jobs.database.engines import check_translation
from sqla_jobs.errors import ArgumentsError, JobsError

log: logging.Logger = logging.getLogger("sqla_jobs.database.commits")

_INFO = "sqla_jobs.database.commits"
_TRANSLATES = "sqla_jobs.database.commits.translates"
_RELEASING = "sqla_jobs.database.commits.releasing"


class _Call(NamedTuple):
    within: SessionTransaction | None
    """The savepoint that it was asked for in, or else the outermost transaction."""
    call: Callable[[], None]
    entity: type[Any] | None = None
    """An entity of the database that is to commit; None of what is called after a rollback."""
    once: Hashable = None


class _Waiting:
    """What one session is to call after its present transaction."""

    def __init__(self) -> None:
        self.entities: set[type[Any]] = set()
        """Of what it is given, in this transaction or the next one."""
        self.calls: list[_Call] = []
        self.once: set[Hashable] = set()
        self.committed = False


def on_commit(session: Session, entity: type[Any], call: Callable[[], None], *, once: Hashable = None) -> None:
    """Call once the session's outermost transaction commits, unless the present savepoint is rolled back before.

    Never if the session is joined to a transaction of somebody else in the database of `entity`: nobody tells it when
    that commits. What is asked for `once` under one name is called once.
    """
    waiting: _Waiting = session.info.get(_INFO) or _wait(session)
    if once is not None:
        if once in waiting.once:
            return
        waiting.once.add(once)
    waiting.calls.append(_Call(_present(session), call, entity, once))


def on_rollback(session: Session, call: Callable[[], None]) -> None:
    """Call if the savepoint in which the session is, if any, is rolled back."""
    if session.in_nested_transaction():
        waiting: _Waiting = session.info.get(_INFO) or _wait(session)
        waiting.calls.append(_Call(_present(session), call))


def committed_by(session: Session, entity: type[Any]) -> Engine | None:
    """The engine by which others see what was committed; None where the transaction is that of somebody else."""
    bind = session.get_bind(entity)
    if isinstance(bind, Connection):
        return None if bind.in_transaction() else bind.engine
    return bind


def check_open(session: Session, entity: type[Any]) -> None:
    """Raise `ArgumentsError` where the session has ended its transaction and nothing that it is given is committed.

    Raises `ConfigurationError` where its connection puts the jobs into another schema than that of workers.
    """
    waiting: _Waiting = session.info.get(_INFO) or _wait(session)
    waiting.entities.add(entity)
    transaction = session.get_transaction()
    if transaction is None or transaction.is_active:
        if _TRANSLATES in session.info:
            check_translation(session.connection(bind_arguments={"mapper": entity}), entity)
        return
    try:
        session.connection(bind_arguments={"mapper": entity})
    except PendingRollbackError:
        return  # as the next flush says, with the cause
    except InvalidRequestError:
        raise ArgumentsError(
            "the session has just committed or rolled back, as in a listener of after_commit, and a job that it is "
            "given now would be lost: enqueue it before session.commit(), or in a session of its own"
        ) from None


@contextmanager
def savepoint(session: Session, entity: type[Any]) -> Generator[None]:
    """What is done inside is done as a whole or not at all.

    Raises `ArgumentsError` as `check_open` does, and `JobsError` where a listener of `before_commit` takes it: its
    release calls that listener, as a commit does.
    """
    check_open(session, entity)
    if _RELEASING in session.info:
        raise JobsError(
            "a listener of before_commit enqueues many jobs, or retries or prunes some: that takes a savepoint, whose "
            "release calls the listener again, without end. Do it before session.commit(), or enqueue jobs one by one"
        )
    with session.begin_nested() as nested:
        yield
        session.info[_RELEASING] = True
        try:
            nested.commit()
        finally:
            del session.info[_RELEASING]


def _present(session: Session) -> SessionTransaction | None:
    return session.get_nested_transaction() or session.get_transaction()


def _wait(session: Session) -> _Waiting:
    waiting = session.info[_INFO] = _Waiting()
    return waiting


@cache
def listen_to_sessions() -> None:
    """Once, and only where there are jobs: importing the package changes nothing."""
    event.listen(Session, "after_begin", _check_translation)
    event.listen(Session, "after_commit", _note_commit)
    event.listen(Session, "after_soft_rollback", _forget)
    event.listen(Session, "after_transaction_end", _call)


def _check_translation(session: Session, transaction: object, connection: Connection) -> None:
    """Refuse to put what the session is given into another schema, where nobody looks for it."""
    if "schema_translate_map" not in connection.get_execution_options():
        return
    session.info[_TRANSLATES] = True
    waiting: _Waiting | None = session.info.get(_INFO)
    for entity in waiting.entities if waiting else ():
        if session.get_bind(entity).engine is connection.engine:
            check_translation(connection, entity)


def _note_commit(session: Session) -> None:
    waiting: _Waiting | None = session.info.get(_INFO)
    if waiting and not session.in_nested_transaction():  # SQLAlchemy 2.1 also tells of released savepoints
        waiting.committed = True


def _forget(session: Session, rolled_back: SessionTransaction) -> None:
    """What was asked for since a savepoint began comes last."""
    waiting: _Waiting | None = session.info.get(_INFO)
    while waiting and waiting.calls and _is_within(waiting.calls[-1].within, rolled_back):
        one = waiting.calls.pop()
        waiting.once.discard(one.once)
        if one.entity is None:
            one.call()


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
            if one.entity is not None and committed_by(session, one.entity):
                one.call()
        except Exception:
            log.exception("a callback after a commit raised")
