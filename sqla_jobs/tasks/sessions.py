"""The kinds of sessions that applications pass."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy.orm import Session, scoped_session

from sqla_jobs.database.engines import is_asynchronous
from sqla_jobs.database.sharding import in_shard_of, names_its_database, refuse_shards
from sqla_jobs.errors import ArgumentsError
from sqla_jobs.models.row import Row

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session

    AnyAsyncSession = AsyncSession | async_scoped_session[Any]
else:
    AnyAsyncSession = object

AnySession = Session | scoped_session[Any]


def any_session(session: AnySession | None, call: str | Callable[[], str]) -> Session:
    """Return the given `Session`, or the one inside a `scoped_session`. Raises `ArgumentsError` for any other object.

    `call` is the correct call as text, such as "jobs.cancel(session, job)", or a function that returns this text.
    """
    if isinstance(session, Session):
        return session
    if isinstance(session, scoped_session):
        inner: Session = session()
        return inner
    raise _refusal(session, call if isinstance(call, str) else call())


def plain_session(session: AnySession | None, call: str | Callable[[], str]) -> Session:
    """Return a session like `any_session`. Raises `ArgumentsError`, too, for one with several databases."""
    own = any_session(session, call)
    if names_its_database(own):
        return own
    raise refuse_shards(call if isinstance(call, str) else call())


@contextmanager
def session_at(session: AnySession | None, call: str, row: object) -> Generator[Session]:
    """Yield a session like `plain_session`, or one with several databases that works in the shard of `row`.

    `row` is a job or a batch, or else anything that does not name a shard.
    """
    own = any_session(session, call)
    if isinstance(row, Row):
        with in_shard_of(own, row):
            yield own
    else:
        yield plain_session(own, call)


def synchronous_session(session: object) -> Session | None:
    """Return the `Session` inside an asynchronous session, or `None` for any other object."""
    if not _is_async_session(session):
        return None
    found: Any = session
    return (found if hasattr(found, "sync_session") else found()).sync_session  # type: ignore[no-any-return]


def _is_async_session(session: object) -> bool:
    names = {base.__name__ for base in type(session).__mro__}
    return is_asynchronous(type(session)) and not names.isdisjoint({"AsyncSession", "async_scoped_session"})


def _refusal(session: object, call: str) -> ArgumentsError:
    if session is None:
        return ArgumentsError(f"the Session is missing: write {call}")
    if not _is_async_session(session):
        return ArgumentsError(f"{call} takes a Session or a scoped_session, got {type(session).__name__}")
    given = "session" if hasattr(session, "run_sync") else "session()"  # an async_scoped_session has no such method
    function, _, arguments = call.partition("(session")
    return ArgumentsError(
        f"this takes a Session, got an AsyncSession: write await {given}.run_sync({function}{arguments}"
    )
