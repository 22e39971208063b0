"""Sessions over several databases, SQLAlchemy's `ShardedSession`: an operation on jobs happens in one shard.

The application's `shard_chooser` decides about a new job, and a job that exists has its shard in its identity token.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import instance_state

from sqla_jobs.errors import ArgumentsError
from sqla_jobs.models.row import Row

_SHARD = "sqla_jobs.database.sharding"


def is_sharded(session: Session) -> bool:
    """Return whether the session has several databases."""
    module = sys.modules.get("sqlalchemy.ext.horizontal_shard")
    return module is not None and isinstance(session, module.ShardedSession)


def present_shard(session: Session) -> Any:
    """Return the shard of the surrounding `in_shard`, or None."""
    return session.info.get(_SHARD)


def names_its_database(session: Session) -> bool:
    """Return whether the session has one database, or the caller is inside `in_shard`."""
    return not is_sharded(session) or present_shard(session) is not None


def in_shard(session: Session, shard: Any = None) -> AbstractContextManager[None]:
    """Send the block's statements about rows of this library to one shard. With None, do nothing.

    Statements about the application's own rows, and new jobs, go where the application chooses.
    """
    return nullcontext() if shard is None else _chosen(session, shard)


def in_shard_of(session: Session, row: Any) -> AbstractContextManager[None]:
    """Return `in_shard` for the shard of a row."""
    return in_shard(session, shard_of(session, row)) if is_sharded(session) else nullcontext()


def shard_of(session: Session, row: Any) -> Any:
    """Return the shard of a row in a sharded session. The application chooses for a new row.

    Raises `ArgumentsError` for a row that was loaded in a session with one database.
    """
    state = instance_state(row)
    if state.key is None:
        session.get_bind(state.mapper, instance=row)  # assigns the token, unless the row has one
    if state.identity_token is None:
        raise ArgumentsError(
            f"{row!r:.100} comes from a session with one database, so its shard is not known: load it in this session, "
            f"session.get({type(row).__name__}, …, identity_token=shard)"
        )
    return state.identity_token


def check_shard(session: Session, row: Any, shard: Any, what: str) -> None:
    """Raise `ArgumentsError` if a row, to which a new job refers, is not in the shard of the job."""
    if (other := shard_of(session, row)) != shard:
        raise ArgumentsError(
            f"{what} is in the shard {other!r}, and the job belongs to {shard!r}, as the shard_chooser decides: a job "
            f"refers to rows of its own database only. Enqueue it for {other!r}, or enqueue another job there"
        )


def known_row(session: Session, entity: type[Any], row_id: int) -> Any:
    """Return the row with this id if the session has it already, or None."""
    return session.identity_map.get(session.identity_key(entity, row_id, identity_token=present_shard(session)))


def has_shard(row: Any) -> bool:
    """Return whether it is settled in which database a row is, or will be."""
    state = instance_state(row)
    return state.key is not None or state.identity_token is not None


def put_into(row: Any, shard: Any) -> None:
    """Choose the shard of a new row."""
    instance_state(row).identity_token = shard


def refuse_shards(call: str) -> ArgumentsError:
    """Return the error about a call that does not name the shard."""
    return ArgumentsError(
        f"{call} works in one database, and this ShardedSession has several: give it a session of that shard, "
        "Session(engine), or inside this transaction Session(session.connection(bind_arguments={'shard_id': shard})). "
        "What takes a job also takes the object of one: session.get(jobs.Job, id, identity_token=shard)"
    )


@contextmanager
def _chosen(session: Any, shard: Any) -> Generator[None]:
    """Replace what the session asks about the database of a statement. Flushes ask the `shard_chooser`."""
    get_bind, identify, execute = session.get_bind, session.identity_chooser, session.execute_chooser

    def bind(mapper: Any = None, *, shard_id: Any = None, instance: Any = None, **others: Any) -> Any:
        if shard_id is None and instance is None and _is_own(mapper):
            shard_id = shard
        return get_bind(mapper, shard_id=shard_id, instance=instance, **others)

    def choose_by_identity(mapper: Any, *args: Any, **kwargs: Any) -> Any:
        return [shard] if _is_own(mapper) else identify(mapper, *args, **kwargs)

    def choose_to_execute(context: Any) -> Any:
        return [shard] if _is_own(context.bind_mapper) else execute(context)

    own, outer = vars(session), present_shard(session)
    before = {name: own[name] for name in ("get_bind", "identity_chooser", "execute_chooser") if name in own}
    own.update(get_bind=bind, identity_chooser=choose_by_identity, execute_chooser=choose_to_execute)
    session.info[_SHARD] = shard
    try:
        yield
    finally:
        del own["get_bind"]
        own.update(before)
        session.info[_SHARD] = outer


def _is_own(mapper: Any) -> bool:
    return mapper is not None and issubclass(getattr(mapper, "class_", mapper), Row)
