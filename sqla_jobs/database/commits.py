"""Callbacks before and after sessions' commits and rollbacks, and operations that are refused during a commit."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Generator, Hashable, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import InvalidRequestError, PendingRollbackError
from sqlalchemy.orm import Session, SessionTransaction, object_session

from sqla_jobs.database.engines import check_translation
from sqla_jobs.database.sharding import in_shard, is_sharded, names_its_database, present_shard
from sqla_jobs.errors import ArgumentsError, JobsError

log: logging.Logger = logging.getLogger("sqla_jobs.database.commits")

_INFO = "sqla_jobs.database.commits"
_TRANSLATES = "sqla_jobs.database.commits.translates"
_RELEASING = "sqla_jobs.database.commits.releasing"


class _Call(NamedTuple):
    within: SessionTransaction | None
    """The savepoint in which the call was requested, or the outermost transaction if there is none."""
    call: Callable[..., None]
    entity: type[Any] | None = None
    """An entity whose database must commit before the call. None for calls after a rollback."""
    once: Hashable = None
    shard: Any = None
    """The shard in which the call was requested, in a session with several."""
    number: int = 0
    """If it is not 0, the call gets the sum of the numbers of all requests with the same `once`."""


Write = Callable[[Session, Sequence[Any]], None]
"""Writes items that have waited for the commit of the session's transaction."""


class _Last(NamedTuple):
    within: SessionTransaction | None
    """The transaction or savepoint in which the item was given."""
    write: Write
    item: Any
    shard: Any


class _Waiting:
    """The calls to make before and after the end of one session's current transaction."""

    def __init__(self) -> None:
        self.entities: set[type[Any]] = set()
        """The entities whose rows the session adds, in this transaction or the next one."""
        self.calls: list[_Call] = []
        self.once: set[Hashable] = set()
        self.committed = False
        self.last: list[_Last] = []
        """What is written before the commit."""
        self.committing = 0
        """The number of commits and releases that were reported with a savepoint open, and have not succeeded yet."""
        self.released: SessionTransaction | None = None
        """The savepoint that was released last."""
        self.is_last_moment = False
        """True once the commit has begun and `last` is written."""


def before_commit(session: Session, write: Write, item: Any) -> None:
    """Call `write` in the last moment before the session's outermost transaction commits, after its last flush.

    `write` gets all the items that were given for it, except those of rolled-back savepoints. If that moment has come
    already, as in a listener of `before_commit`, `write` is called at once.
    """
    if not session.in_transaction():
        session.begin()  # otherwise a rollback would not be noticed
    waiting: _Waiting = session.info.get(_INFO) or _wait(session)
    if waiting.is_last_moment:
        write(session, [item])
    else:
        waiting.last.append(_Last(_present(session), write, item, present_shard(session)))


def is_waiting(session: Session) -> bool:
    """Return whether the session has something to write before its commit."""
    waiting: _Waiting | None = session.info.get(_INFO)
    return waiting is not None and bool(waiting.last)


def write_now(session: Session) -> None:
    """Flush the session, and write what waits for its commit."""
    session.flush()
    waiting: _Waiting | None = session.info.get(_INFO)
    while waiting and waiting.last:
        given, waiting.last = waiting.last, []
        on_rollback(session, partial(_wait_again, waiting, given))
        try:
            for write, shard in dict.fromkeys((one.write, one.shard) for one in given):
                with in_shard(session, shard):
                    write(session, [one.item for one in given if (one.write, one.shard) == (write, shard)])
        except BaseException:
            _wait_again(waiting, given)
            raise
        session.flush()


def _wait_again(waiting: _Waiting, given: Sequence[_Last]) -> None:
    waiting.last = [*given, *(one for one in waiting.last if one not in given)]


def on_commit(
    session: Session, entity: type[Any], call: Callable[..., None], *, once: Hashable = None, number: int = 0
) -> None:
    """Call `call` once the session's outermost transaction commits, unless the current savepoint is rolled back.

    If the session has joined another owner's transaction in the database of `entity`, `call` is never called, because
    that transaction's commit cannot be observed. Of several requests with the same `once`, only one is carried out. If
    they have a `number`, `call` gets the sum of the numbers.
    """
    waiting: _Waiting = session.info.get(_INFO) or _wait(session)
    shard = present_shard(session)
    if once is not None:
        once = once if shard is None else (once, shard)
        if once in waiting.once and not number:
            return
        waiting.once.add(once)
    waiting.calls.append(_Call(_present(session), call, entity, once, shard, number))


def on_release(session: Session, entity: type[Any], call: Callable[[], None], *, once: Hashable) -> None:
    """Call `call` once the session's current transaction or savepoint is rolled back or closed, not committed.

    The rows that the session has locked in it are free then. Of several requests in it with the same `once`, only one
    is carried out. See `on_commit` about `entity`.
    """
    waiting: _Waiting = session.info.get(_INFO) or _wait(session)
    within, shard = _present(session), present_shard(session)
    once = within, once, shard
    if once not in waiting.once:
        waiting.once.add(once)
        waiting.calls.append(_Call(within, partial(_call_if_own, session, entity, call), None, once, shard))


def on_rollback(session: Session, call: Callable[[], None]) -> None:
    """Call `call` if the current savepoint is rolled back. Do nothing outside savepoints."""
    if session.in_nested_transaction():
        waiting: _Waiting = session.info.get(_INFO) or _wait(session)
        waiting.calls.append(_Call(_present(session), call, shard=present_shard(session)))


def committed_by(session: Session, entity: type[Any]) -> sa.Engine | None:
    """Return the engine if the session itself commits its transaction.

    Return None if the transaction has another owner.
    """
    bind = session.get_bind(entity)
    if isinstance(bind, sa.Connection):
        return None if bind.in_transaction() else bind.engine
    return bind


def check_open(session: Session, entity: type[Any]) -> None:
    """Raise `ArgumentsError` if the session has ended its transaction. Anything added now would be lost.

    Raises `ConfigurationError` if the session's connection puts the jobs into a different schema from the workers'.
    """
    waiting: _Waiting = session.info.get(_INFO) or _wait(session)
    waiting.entities.add(entity)
    transaction = session.get_transaction()
    if transaction is None or transaction.is_active:
        if _TRANSLATES in session.info and names_its_database(session):
            check_translation(session.connection(bind_arguments={"mapper": entity}), entity)
        return
    if not names_its_database(session):
        return  # the caller checks it again in the shard of the job
    try:
        session.connection(bind_arguments={"mapper": entity})
    except PendingRollbackError:
        return  # the next flush raises this error too, with its cause
    except InvalidRequestError:
        raise ArgumentsError(
            "the session has just committed or rolled back, as in a listener of after_commit, and a job that it is "
            "given now would be lost: enqueue it before session.commit(), or in a session of its own"
        ) from None


def check_may_flush(session: Session) -> None:
    """Raise `ArgumentsError` inside a flush, as in a listener of `before_flush`: another flush cannot begin there."""
    if getattr(session, "_flushing", False):
        raise ArgumentsError(
            "the session is flushing, as in a listener of before_flush, after_insert or after_flush, and a job with "
            "after= or in a new batch takes another flush: enqueue it in a listener of before_commit, or after "
            "session.flush()"
        )


@contextmanager
def savepoint(session: Session, entity: type[Any]) -> Generator[None]:
    """Run the block in a savepoint, so that all or none of its changes are kept.

    Raises the errors of `check_open`. Raises `JobsError` inside a `before_commit` listener: releasing the savepoint
    would call that listener again, as a commit does.
    """
    check_open(session, entity)
    if _RELEASING in session.info:
        raise JobsError(
            "a listener of before_commit enqueues many jobs, or changes some: that takes a savepoint, whose release "
            "calls the listener again, without end. Do it before session.commit(), or enqueue jobs one by one"
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
    """Install the listeners on the first call. Importing the package must have no side effects."""
    event.listen(Session, "after_begin", _check_translation)
    event.listen(Session, "before_flush", _flush_in_savepoints)
    event.listen(Session, "before_commit", _write_last)
    event.listen(Session, "after_commit", _note_commit)
    event.listen(Session, "after_soft_rollback", _forget)
    event.listen(Session, "after_transaction_end", _call)


def _check_translation(session: Session, transaction: object, connection: sa.Connection) -> None:
    """Refuse to put a session's jobs into another schema, where no worker would look for them."""
    if "schema_translate_map" not in connection.get_execution_options():
        return
    session.info[_TRANSLATES] = True
    waiting: _Waiting | None = session.info.get(_INFO)
    for entity in waiting.entities if waiting else ():
        if is_sharded(session) or session.get_bind(entity).engine is connection.engine:
            check_translation(connection, entity)


def _flush_in_savepoints(session: Session, *_: object) -> None:
    """Let flushes of a session over several databases write inside its savepoints.

    SQLAlchemy gives them the connection of the outermost transaction, and opens no savepoint on it.
    """
    if is_sharded(session):
        vars(session)["connection_callable"] = _present_connection


def _present_connection(mapper: Any, row: Any) -> sa.Connection:
    session = object_session(row)
    assert session is not None, "it flushes the row"
    return session.connection(bind_arguments={"mapper": mapper, "instance": row})


def _write_last(session: Session) -> None:
    """Write what waits for the commit of the outermost transaction.

    SQLAlchemy also reports the release of each savepoint. A commit that finds savepoints open is reported first, and
    looks like the release of the innermost one; then these are released, and `_call` writes after the last of them.
    """
    waiting: _Waiting = session.info.get(_INFO) or _wait(session)
    if session.in_nested_transaction():
        waiting.committing += 1
    else:
        _write_at_last(session, waiting)


def _write_at_last(session: Session, waiting: _Waiting) -> None:
    if waiting.last:
        write_now(session)
    waiting.is_last_moment = True


def _note_commit(session: Session) -> None:
    waiting: _Waiting | None = session.info.get(_INFO)
    if waiting is None:
        return
    if (savepoint := session.get_nested_transaction()) is None:
        waiting.committed = True
    else:  # SQLAlchemy also reports released savepoints
        waiting.released, waiting.committing = savepoint, waiting.committing - 1


def _forget(session: Session, rolled_back: SessionTransaction) -> None:
    """Remove the calls requested since the rolled-back savepoint began. They are the last ones in the list."""
    waiting: _Waiting | None = session.info.get(_INFO)
    while waiting and waiting.calls and _is_within(waiting.calls[-1].within, rolled_back):
        one = waiting.calls.pop()
        waiting.once.discard(one.once)
        if one.entity is None:
            with in_shard(session, one.shard):
                one.call()
    if waiting:
        waiting.committing = 0
        waiting.last = [one for one in waiting.last if not _is_within(one.within, rolled_back)]


def _is_within(transaction: SessionTransaction | None, outer: SessionTransaction) -> bool:
    while transaction is not None and transaction is not outer:
        transaction = transaction.parent
    return transaction is outer


def _call(session: Session, transaction: SessionTransaction) -> None:
    waiting: _Waiting | None = session.info.get(_INFO)
    if waiting is None:
        return
    if transaction is waiting.released and waiting.committing > 0 and not session.in_nested_transaction():
        _write_at_last(session, waiting)  # the outermost transaction is the one that commits
    if transaction.parent is not None:
        return
    del session.info[_INFO]
    numbers = Counter[Hashable]()
    for one in waiting.calls:
        numbers[one.once] += one.number
    for one in waiting.calls:
        if one.number and one.once not in numbers:
            continue  # its number was part of an earlier call
        with in_shard(session, one.shard):
            if not waiting.committed and one.entity is None:  # a closed session reports no rollback
                one.call()
            elif waiting.committed and one.entity is not None:
                call = partial(one.call, numbers.pop(one.once)) if one.number else one.call
                _call_if_own(session, one.entity, call)


def _call_if_own(session: Session, entity: type[Any], call: Callable[[], None]) -> None:
    """Call `call` if the session itself ends its transaction in the database of `entity`."""
    try:
        if not names_its_database(session) or committed_by(session, entity):
            call()
    except Exception:
        log.exception("a callback after a commit raised")
