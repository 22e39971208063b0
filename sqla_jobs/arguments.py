"""Encodes a task's arguments when it is enqueued and decodes them when it runs."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NotRequired, cast

import pydantic
from pydantic import ConfigDict, TypeAdapter
from pydantic_core import from_json, to_json
from sqlalchemy import inspect, select, tuple_
from sqlalchemy.orm import Mapper, Session, object_session
from typing_extensions import TypedDict

from sqla_jobs.errors import ArgumentsError, DeclarationError, EntityGone
from sqla_jobs.signatures import Signature, injection_of

MAX_BYTES = 1024 * 1024
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_CONFIG = ConfigDict(
    extra="forbid",
    hide_input_in_errors=True,
    ser_json_bytes="base64",
    val_json_bytes="base64",
)


@dataclass(frozen=True)
class Entity:
    """A parameter annotated with a mapped class: stored as primary keys, loaded from the run's session."""

    mapper: Mapper[Any]
    many: bool

    def key_of(self, where: str, session: Session, value: Any) -> Any:
        """The primary key (or a list of them); flushes the session where the row has none yet."""
        if value is None:
            return None
        if self.many:
            return [self._key_of(where, session, item) for item in value]
        return self._key_of(where, session, value)

    def _key_of(self, where: str, session: Session, value: Any) -> Any:
        name = self.mapper.class_.__name__
        if not isinstance(value, self.mapper.class_):
            raise ArgumentsError(f"{where} takes a {name}, not a {type(value).__name__}")
        state = inspect(value)
        if state.pending and object_session(value) is session:
            session.flush()
        if state.deleted or state.was_deleted:
            raise ArgumentsError(f"{where}: that {name} has been deleted")
        if state.identity is None:
            raise ArgumentsError(f"{where}: that {name} is not in this session; session.add() it first")
        return state.identity if len(state.identity) > 1 else state.identity[0]

    def load(self, where: str, session: Session, key: Any) -> Any:
        """The row (or the list of rows). Raises `EntityGone` where one is no longer there."""
        if key is None:
            return None
        keys = [item if isinstance(item, tuple) else (item,) for item in (key if self.many else [key])]
        columns = self.mapper.primary_key
        found = session.scalars(select(self.mapper).where(tuple_(*columns).in_(keys))) if keys else ()
        rows = {tuple(inspect(row).identity): row for row in found}
        for item in keys:
            if item not in rows:
                shown = item if len(item) > 1 else item[0]
                raise EntityGone(f"{where}: {self.mapper.class_.__name__} {shown} is gone")
        loaded = [rows[item] for item in keys]
        return loaded if self.many else loaded[0]

    @property
    def key_type(self) -> Any:
        """The type of one key, as pydantic is to read it back."""
        types_ = [_python_type(column) for column in self.mapper.primary_key]
        return types_[0] if len(types_) == 1 else tuple[tuple(types_)]  # type: ignore[misc]


def _python_type(column: Any) -> Any:
    try:
        return column.type.python_type
    except NotImplementedError:
        return Any


class Codec:
    """Turns the arguments of one task into JSON and back, by the types it is annotated with."""

    def __init__(self, task: str, signature: Signature, sensitive: frozenset[str]) -> None:
        self._task = task
        self._signature = signature
        self._sensitive = sensitive

    def encode(self, session: Session, values: Mapping[str, Any]) -> bytes:
        """JSON of the given arguments, which reads back equal. Raises `ArgumentsError`.

        No message of it shows a value. The session is flushed where an entity has no key yet.
        """
        plain = {
            name: entity.key_of(self._where(name), session, values[name])
            for name, entity in self._entities.items()
            if name in values
        }
        adapter = self._adapter
        try:
            checked = adapter.validate_python({**values, **plain})
            encoded = adapter.dump_json(checked, round_trip=True, by_alias=True, warnings=False)
        except pydantic.ValidationError as error:
            raise self._unfit(error) from None
        except (ValueError, TypeError, RecursionError) as error:
            raise ArgumentsError(f"{self._task}: the arguments cannot be written as JSON: {error}") from None
        if len(encoded) > MAX_BYTES:
            raise ArgumentsError(
                f"{self._task}: the arguments are {len(encoded):,} bytes of JSON, at most {MAX_BYTES:,} are taken; "
                "store the data and pass its key"
            )
        if _NUL.search(encoded):
            raise ArgumentsError(
                f"{self._task}: a string among the arguments holds a NUL character, which PostgreSQL cannot store"
            )
        self._refuse_changed(checked, encoded)
        return encoded

    def decode(self, stored: str) -> dict[str, Any]:
        """The arguments as their annotated types, entities as keys. Raises `ArgumentsError`."""
        try:
            return self._adapter.validate_json(stored)
        except pydantic.ValidationError as error:
            raise self._unfit(error) from None

    def load(self, session: Session, values: dict[str, Any]) -> dict[str, Any]:
        """`values` with each key of an entity replaced by its row."""
        for name, entity in self._entities.items():
            if name in values:
                values[name] = entity.load(self._where(name), session, values[name])
        return values

    def check(self) -> None:
        """Resolve every annotation now. Raises `DeclarationError` naming the one that does not."""
        _ = self._adapter

    def _where(self, name: str) -> str:
        return f"{self._task}: argument {name!r}"

    def _refuse_changed(self, checked: dict[str, Any], encoded: bytes) -> None:
        try:
            back = self._adapter.validate_json(encoded)
        except pydantic.ValidationError as error:
            raise self._unfit(error, "does not read back from JSON") from None
        for name, value in checked.items():
            try:
                same = bool(back[name] == value)
            except Exception:  # noqa: BLE001 - an == that raises or answers with an array is not equal
                same = False
            if not same:
                raise ArgumentsError(
                    f"{self._where(name)}: the {type(value).__name__} reads back from JSON as a different "
                    f"{type(back[name]).__name__}; annotate the parameter with the exact type, or pass plain JSON"
                )

    def _unfit(self, error: pydantic.ValidationError, cause: str = "does not fit") -> ArgumentsError:
        lines: list[str] = []
        for item in error.errors(include_url=False, include_context=False, include_input=False):
            path = [str(part) for part in item["loc"]]
            hidden = bool(path) and path[0] in self._sensitive
            lines.append(f"{'.'.join(path)} {cause}" + ("" if hidden else f": {item['msg']}"))
        return ArgumentsError(f"{self._task}: " + "; ".join(lines))

    @cached_property
    def _annotations(self) -> dict[str, Any]:
        found = {name: self._signature.annotation(name) for name in self._signature.arguments.parameters}
        for name, annotation in found.items():
            if injection_of(self._task, name, annotation):
                raise DeclarationError(
                    f"{self._where(name)} turned out to be a {annotation.__name__}, which was not known when the task "
                    "was declared: import that name before the task, not only under TYPE_CHECKING"
                )
        return found

    @cached_property
    def _entities(self) -> dict[str, Entity]:
        entities = {name: entity_of(note) for name, note in self._annotations.items()}
        return {name: entity for name, entity in entities.items() if entity}

    @cached_property
    def _adapter(self) -> TypeAdapter[dict[str, Any]]:
        fields: dict[str, Any] = {}
        for name, parameter in self._signature.arguments.parameters.items():
            annotation = self._annotations[name]
            if entity := self._entities.get(name):
                key = entity.key_type
                annotation = (list[key] if entity.many else key) | None  # type: ignore[valid-type]
                if not self._signature.wants_session:
                    raise self.entity_without_session(name)
            required = parameter.default is parameter.empty
            fields[name] = annotation if required else NotRequired[annotation]
        try:
            return _adapter_of(fields)
        except pydantic.errors.PydanticUserError:
            for name, annotation in fields.items():
                try:
                    _adapter_of({name: annotation})
                except pydantic.errors.PydanticUserError as error:
                    raise DeclarationError(
                        f"{self._where(name)}: {self._annotations[name]!r} cannot be stored: "
                        f"{str(error).splitlines()[0]}"
                    ) from None
            raise

    def entity_without_session(self, name: str) -> DeclarationError:
        return DeclarationError(
            f"{self._where(name)} is a row of the database, so the task takes a session to load it from: "
            f"def {self._task}(session: Session, …)"
        )


def _adapter_of(fields: dict[str, Any]) -> TypeAdapter[dict[str, Any]]:
    shape = cast("Any", TypedDict)("Arguments", fields)
    shape.__pydantic_config__ = _CONFIG
    return TypeAdapter(shape)


def entity_of(annotation: Any) -> Entity | None:
    """What `Order`, `Order | None` or `list[Order]` says, `None` for any other annotation."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        rest = [arg for arg in args if arg is not type(None)]
        return entity_of(rest[0]) if len(rest) == 1 else None
    if origin is list:
        one = entity_of(args[0])
        return Entity(one.mapper, many=True) if one else None
    mapper = inspect(annotation, raiseerr=False) if isinstance(annotation, type) else None
    return Entity(mapper, many=False) if isinstance(mapper, Mapper) else None


def encode_result(value: Any) -> str | None:
    """A task's return value as JSON text, `None` for `None`. Raises `ArgumentsError` where it is not JSON."""
    if value is None:
        return None
    try:
        encoded = to_json(value, inf_nan_mode="constants", bytes_mode="base64")
        from_json(encoded, allow_inf_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise ArgumentsError(f"the result, a {type(value).__name__}, is not JSON: {error}") from None
    if len(encoded) > MAX_BYTES:
        raise ArgumentsError(f"the result is {len(encoded):,} bytes of JSON, at most {MAX_BYTES:,} are kept")
    if _NUL.search(encoded):
        raise ArgumentsError("the result holds a NUL character, which PostgreSQL cannot store")
    return encoded.decode()
