"""Arguments that are database rows: stored as primary keys, loaded in the run's session."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

import sqlalchemy as sa
from pydantic import BaseModel
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.orm import Mapper, Session, object_session

from sqla_jobs.errors import ArgumentsError, EntityGone
from sqla_jobs.tasks.signature import underlying

_DIALECT: sa.Dialect = PGDialect_psycopg()  # type: ignore[no-untyped-call]
_AT_ONCE = 1000
_SCALARS = frozenset({str, int, float, bool, bytes, types.NoneType})


@dataclasses.dataclass(frozen=True)
class Entity:
    """The mapped class of a parameter annotated as, for example, `Order`, `Order | None` or `list[Order]`."""

    mapper: Mapper[Any]
    many: bool = False
    optional: bool = False

    @property
    def key_type(self) -> Any:
        """The type of the stored key, or list of keys, for pydantic."""
        parts = [_python_type(column.type) for column in self.mapper.primary_key]
        key: Any = parts[0] if len(parts) == 1 else tuple[tuple(parts)]  # type: ignore[misc]
        whole = list[key] if self.many else key
        return whole | None if self.optional else whole

    def key_of(self, where: str, session: Session, value: Any) -> Any:
        """Return the primary key, or a list of keys. Flush the session if a row has no key yet."""
        if value is None and self.optional:
            return None
        if not self.many:
            return self._key_of(where, session, value)
        if not isinstance(value, Iterable):
            raise ArgumentsError(f"{where} takes a list of rows of {self._name}, got {type(value).__name__}")
        return [self._key_of(where, session, item) for item in value]

    def _key_of(self, where: str, session: Session, value: Any) -> Any:
        if not isinstance(value, self.mapper.class_):
            raise ArgumentsError(
                f"{where} takes a row of {self._name}, got {type(value).__name__}: pass the row itself, such as "
                f"session.get({self._name}, …)"
            )
        state = sa.inspect(value)
        if state.pending and object_session(value) is session:
            session.flush()
        if state.deleted or state.was_deleted or value in session.deleted:
            raise ArgumentsError(f"{where}: that {self._name} has been deleted")
        if state.identity is None:
            raise ArgumentsError(f"{where}: that {self._name} is not in this session; session.add() it first")
        return self._convert(state.identity, "process_bind_param")

    def rows_in(self, value: Any) -> Iterable[Any]:
        """Return the rows of an argument."""
        return () if value is None else value if self.many else (value,)

    def load(self, where: str, session: Session, key: Any, *, hide: bool) -> Any:
        """Return the row, or the list of rows. Raises `EntityGone` for a missing row; `hide` masks its key."""
        if key is None:
            return None
        keys = [self._convert(item, "process_result_value") for item in (key if self.many else [key])]
        known = list(self._rows(session, keys)) if self.many else []
        rows = [session.get(self.mapper, item) for item in keys]
        del known  # kept until here, since a session references rows weakly
        for item, row in zip(keys, rows, strict=True):
            if row is None:
                raise EntityGone(f"{where}: {self._name} {'***' if hide else item} is gone")
        return rows if self.many else rows[0]

    def _rows(self, session: Session, keys: list[Any]) -> Iterator[Any]:
        columns = self.mapper.primary_key
        for start in range(0, len(keys), _AT_ONCE):
            some = [key if isinstance(key, tuple) else (key,) for key in keys[start : start + _AT_ONCE]]
            yield from session.scalars(sa.select(self.mapper).where(sa.tuple_(*columns).in_(some))).unique()

    @property
    def _name(self) -> str:
        name: str = self.mapper.class_.__name__
        return name

    def _convert(self, key: Any, method: str) -> Any:
        """Convert a key with the application's own column types, to the stored form or back."""
        parts = key if isinstance(key, tuple) else (key,)
        columns = self.mapper.primary_key
        converted = tuple(_converted(column.type, method, part) for column, part in zip(columns, parts, strict=True))
        return converted[0] if len(converted) == 1 else converted


def _converted(kind: Any, method: str, value: Any) -> Any:
    if isinstance(kind, sa.TypeDecorator):
        with suppress(NotImplementedError):
            return getattr(kind, method)(value, _DIALECT)
    return value


def _python_type(kind: Any) -> Any:
    if isinstance(kind, sa.TypeDecorator):
        kind = kind.load_dialect_impl(_DIALECT)
    try:
        return kind.python_type
    except NotImplementedError:
        return Any


def entity_of(annotation: Any) -> Entity | None:
    """Return the entity of an annotation; `None` for an annotation without a mapped class."""
    annotation = underlying(annotation)
    origin: Any = typing.get_origin(annotation)
    args: list[Any] = [arg for arg in typing.get_args(annotation) if arg is not types.NoneType]
    if origin in (typing.Union, types.UnionType):
        one = entity_of(args[0]) if len(args) == 1 else None
        return dataclasses.replace(one, optional=True) if one else None
    mapper = _mapper_of(underlying(args[0]) if origin is list else annotation)
    return Entity(mapper, many=origin is list) if mapper else None


def _mapper_of(annotation: Any) -> Mapper[Any] | None:
    mapper = sa.inspect(annotation, raiseerr=False) if isinstance(annotation, type) else None
    return mapper if isinstance(mapper, Mapper) else None


def refuse_rows(what: str, value: Any, *, remedy: str) -> None:
    """Raise `ArgumentsError` if `value` is or contains a row, since all the columns of the row would be stored."""
    if (name := row_in(value)) is not None:
        holds = "contains" if _mapper_of(type(value)) is None else "is"
        raise ArgumentsError(f"{what} {holds} a row of {name}: {remedy}")


def row_in(value: Any) -> str | None:
    """Return the name of the mapped class if `value` is a row or contains one; else None."""
    left, seen = [value], set[int]()
    while left:
        one = left.pop()
        if type(one) in _SCALARS or id(one) in seen:
            continue
        seen.add(id(one))
        if mapper := _mapper_of(type(one)):
            return str(mapper.class_.__name__)
        left += _parts(one)
    return None


def _parts(value: Any) -> Iterable[Any]:
    """Return the values that pydantic stores as parts of `value`."""
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, list | tuple | set | frozenset):
        return value
    if isinstance(value, BaseModel):
        excluded = {name for name, field in type(value).model_fields.items() if field.exclude}
        own = [part for name, part in value.__dict__.items() if name not in excluded]
        return [*own, *(value.model_extra or {}).values()]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name, None) for field in dataclasses.fields(value)]
    return ()
