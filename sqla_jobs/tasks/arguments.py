"""Encodes a task's arguments when it is enqueued and decodes them when it runs."""

from __future__ import annotations

import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import cached_property
from typing import Any, ClassVar, NotRequired, cast, get_args, get_origin

import pydantic
from pydantic import BaseModel, ConfigDict, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaWarningKind
from pydantic_core import from_json, to_json
from pydantic_core.core_schema import ErrorType
from sqlalchemy.orm import Session
from typing_extensions import TypedDict

from sqla_jobs.errors import ArgumentsError, DeclarationError
from sqla_jobs.tasks.entities import Entity, entity_of, refuse_rows
from sqla_jobs.tasks.secret_type import holds_secret
from sqla_jobs.tasks.signature import IMPORT_IT, Signature, injection_of
from sqla_jobs.tasks.type_parts import parts_of

MAX_BYTES = 1024 * 1024
_RETURN = "return plain JSON, or nothing"
_ERRORS = 5
"""Maximum number of errors in one message."""
_KINDS = frozenset[str](get_args(ErrorType))
_PLAIN = (str, int, bool, str | None, int | None, bool | None)
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_EXPONENT = re.compile(rb"[0-9][eE]\+?[0-9]")
_CONFIG = ConfigDict(
    extra="forbid",
    hide_input_in_errors=True,
    ser_json_bytes="base64",
    val_json_bytes="base64",
)


class Codec:
    """Encodes one task's arguments as JSON, and decodes them, according to their annotated types."""

    _context: ClassVar[str | None] = None
    """How secrets are written as JSON."""
    _secret: frozenset[str] = frozenset()
    """The arguments whose types hold secrets, as found when the task was declared."""

    def __init__(self, task: str, signature: Signature, sensitive: frozenset[str]) -> None:
        self._task = task
        self._signature = signature
        self._sensitive = sensitive

    def encode(self, session: Session, values: Mapping[str, Any]) -> bytes:
        """Return the arguments as JSON that decodes to equal values. Raises `ArgumentsError`.

        No error message shows a value. The session is flushed if a row has no primary key yet.
        """
        return self._encoded(self._with_keys(session, values) if self.entities else values)[0]

    def stored(self, session: Session, values: Mapping[str, Any]) -> dict[str, Any]:
        """Encode the arguments like `encode`, and return them as plain JSON values."""
        return self._encoded(self._with_keys(session, values) if self.entities else values)[1]

    def encode_without_rows(self, values: Mapping[str, Any]) -> bytes:
        """Encode the arguments like `encode`, without a session. Raises `ArgumentsError` for a database row."""
        if rows := sorted(self.entities.keys() & values.keys()):
            raise ArgumentsError(
                f"{self._where(rows[0])} is a row of the database, which a schedule cannot hold: "
                "take its key as a plain argument, and load it in the task"
            )
        self.refuse_secrets(values)
        return self._encoded(values)[0]

    def refuse_secrets(self, names: Iterable[str]) -> None:
        """Raise `ArgumentsError` if the argument of one of these names is encrypted."""

    def _with_keys(self, session: Session, values: Mapping[str, Any]) -> Mapping[str, Any]:
        rows = ((name, entity) for name, entity in self.entities.items() if name in values)
        return {**values, **{name: entity.key_of(self._where(name), session, values[name]) for name, entity in rows}}

    def rows(self, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """Yield the rows among the arguments, each with the words that name its argument."""
        for name, entity in self.entities.items():
            for row in entity.rows_in(values.get(name)):
                yield self._where(name), row

    @property
    def is_resolvable(self) -> bool:
        """True if all names in the annotations are already defined."""
        try:
            self.check()
        except DeclarationError:
            return False
        return True

    def _encoded(self, values: Mapping[str, Any]) -> tuple[bytes, dict[str, Any]]:
        """Return the arguments as JSON text, and as plain JSON values."""
        try:
            checked = self._adapter.validator.validate_python(values)
        except pydantic.ValidationError as error:
            raise self._unfit(error) from None
        if not self._is_plain:
            self._refuse_rows(checked)
        encoded = self._dump(checked)
        if fault := too_much(encoded):
            raise ArgumentsError(f"{self._task}: its JSON of arguments {fault}")
        if self._is_plain:
            try:
                stored = from_json(encoded)
            except ValueError:  # a number is too long for JSON
                stored = {}
            if stored == checked:  # texts and whole numbers need no second, typed decoding
                return encoded, stored
        self._refuse_changed(checked, encoded)
        return self._as_stored(checked, encoded)

    def _as_stored(self, checked: dict[str, Any], encoded: bytes) -> tuple[bytes, dict[str, Any]]:
        return encoded, from_json(encoded)

    @property
    def read(self) -> Callable[[str], dict[str, Any]]:
        """A variant of `decode` that raises pydantic's `ValidationError`."""
        return self._adapter.validator.validate_json

    def decode(self, stored: str) -> dict[str, Any]:
        """Return the arguments as their annotated types, with keys in place of entities. Raises `ArgumentsError`."""
        try:
            return self._adapter.validate_json(stored)
        except pydantic.ValidationError as error:
            raise self._unfit(error) from None

    def load(self, session: Session, values: dict[str, Any]) -> dict[str, Any]:
        """Replace each entity's key in `values` with the entity's row. Raises `EntityGone`."""
        for name, entity in self.entities.items():
            if name in values:
                values[name] = entity.load(self._where(name), session, values[name], hide=name in self._sensitive)
        return values

    def check(self) -> None:
        """Resolve every annotation. Raises a `DeclarationError` that names an annotation that cannot be resolved."""
        _ = self._adapter

    @property
    def digest(self) -> str:
        """A short hash of the JSON schema of the argument types; empty if they have no schema."""
        try:
            schema = self._adapter.json_schema(schema_generator=_Schema)
        except Exception:  # noqa: BLE001 - a type of the application may make its own schema
            return ""
        return hashlib.sha256(json.dumps(schema, sort_keys=True).encode()).hexdigest()[:8]

    @cached_property
    def field_names(self) -> frozenset[str]:
        """The names of fields in the types of arguments. Raises the errors of `check`."""
        return frozenset(_field_names(self._adapter.core_schema))

    def _where(self, name: str) -> str:
        return f"{self._task}: argument {name!r}"

    def _dump(self, checked: dict[str, Any]) -> bytes:
        try:
            return self._adapter.serializer.to_json(
                checked, round_trip=True, by_alias=True, warnings=False, context=self._context
            )
        except (ValueError, TypeError, RecursionError) as error:
            if len(checked) == 1:
                (name,) = checked
                detail = "" if name in self._sensitive else f": {error}"
                raise ArgumentsError(f"{self._where(name)} cannot be written as JSON{detail}") from None
            for name, value in checked.items():
                self._dump({name: value})
            raise

    def _refuse_rows(self, checked: dict[str, Any]) -> None:
        for name, value in checked.items():
            refuse_rows(self._where(name), value, remedy="annotate it as one row or as a list of rows, or pass its key")

    def _refuse_changed(self, checked: dict[str, Any], encoded: bytes) -> None:
        try:
            back = self._adapter.validator.validate_json(as_jsonb(encoded))
        except pydantic.ValidationError as error:
            raise self._unfit(error, "does not read back from JSON") from None
        except (ValueError, RecursionError):
            raise ArgumentsError(f"{self._task}: the arguments hold numbers too long for JSON") from None
        for name, value in checked.items():
            if not is_same(back[name], value):
                raise ArgumentsError(
                    f"{self._where(name)}: the {type(value).__name__} does not read back from JSON as it was; "
                    "annotate the parameter with the exact type, or pass plain JSON"
                )

    def _unfit(self, error: pydantic.ValidationError, cause: str = "does not fit") -> ArgumentsError:
        lines: list[str] = []
        for item in error.errors(include_url=False, include_context=False, include_input=False):
            path, why = [str(part) for part in item["loc"]], item["msg"]
            if path and path[0] in self._sensitive:
                # all but the first part of the path may come from the value, and so may a kind of the application
                path, why = path[:1], item["type"] if item["type"] in _KINDS else "custom_error"
            lines.append(f"{'.'.join(path) or 'what was given'} {cause}: {why}")
        more = f"; and {len(lines) - _ERRORS:,} more" if len(lines) > _ERRORS else ""
        return ArgumentsError(f"{self._task}: " + "; ".join(lines[:_ERRORS]) + more)

    @cached_property
    def _annotations(self) -> dict[str, Any]:
        found = {name: self._signature.annotation(name) for name in self._signature.arguments.parameters}
        for name, annotation in found.items():
            if injection_of(self._task, name, annotation):
                raise DeclarationError(
                    f"{self._where(name)} turned out to be a {annotation.__name__}, which was not known when the task "
                    "was declared: import that name before the task, not only under TYPE_CHECKING"
                )
            if holds_secret(annotation) and name not in self._secret:
                raise DeclarationError(
                    f"{self._where(name)} turned out to hold Encrypted, which was not known when the task was "
                    "declared: define or import its type before the task"
                )
        return found

    @cached_property
    def entities(self) -> dict[str, Entity]:
        """The arguments that are database rows."""
        entities = {name: entity_of(note) for name, note in self._annotations.items()}
        return {name: entity for name, entity in entities.items() if entity}

    @cached_property
    def _is_plain(self) -> bool:
        """True if each argument is a str, int or bool, perhaps optional."""
        return all(note in _PLAIN for note in self._types.values())

    @cached_property
    def _types(self) -> dict[str, Any]:
        """The stored type of each argument."""
        types = dict(self._annotations)
        for name, entity in self.entities.items():
            if not self._signature.wants_session:
                raise self.entity_without_session(name)
            types[name] = entity.key_type
        return types

    @cached_property
    def _adapter(self) -> TypeAdapter[dict[str, Any]]:
        shape: dict[str, Any] = {}
        for name, parameter in self._signature.arguments.parameters.items():
            annotation = self._types[name]
            shape[name] = annotation if parameter.default is parameter.empty else NotRequired[annotation]
        try:
            return adapter_of(shape)
        except Exception:
            for name, annotation in shape.items():
                self._refuse_unusable(name, annotation)
            raise

    def _refuse_unusable(self, name: str, annotation: Any) -> None:
        try:
            adapter_of({name: annotation})
        except Exception as error:  # noqa: BLE001 - many kinds are raised; the message shows the first line
            remedy = f"; {IMPORT_IT}" if isinstance(error, NameError) else ""
            raise DeclarationError(
                f"{self._where(name)}: {self._annotations[name]!r} cannot be stored: "
                f"{str(error).splitlines()[0]}{remedy}"
            ) from None

    def entity_without_session(self, name: str) -> DeclarationError:
        kind = "AsyncSession" if self._signature.is_coroutine else "Session"
        return DeclarationError(
            f"{self._where(name)} is a row of the database, so the task takes a session to load it from: "
            f"def {self._task}(session: {kind}, …)"
        )


def _field_names(schema: object) -> Iterator[str]:
    """Yield the names of fields that the types in a core schema declare, at any depth."""
    left: list[Any] = [schema]
    while left:
        node = left.pop()
        match node:
            case {"type": "typed-dict" | "model-fields", "fields": fields}:
                for name, field in fields.items():
                    yield from (name, field.get("serialization_alias", name))
                left += [*fields.values(), node.get("extras_schema")]
            case {"type": "dataclass-field", "name": name}:
                yield from (name, node.get("serialization_alias", name))
                left.append(node["schema"])
            case dict():
                left += node.values()
            case list() | tuple():
                left += node
            case _:
                pass


class _Schema(GenerateJsonSchema):
    """A schema generator that does not warn about defaults that are not JSON."""

    ignored_warning_kinds: set[JsonSchemaWarningKind] = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012


def refuse_ordered(annotation: Any) -> None:
    """Raise `DeclarationError` for a type that is or contains an `OrderedDict`, whose order would be lost."""
    for part in parts_of(annotation):
        origin = get_origin(part) or part
        if isinstance(origin, type) and issubclass(origin, OrderedDict):
            raise DeclarationError(
                f"the database does not keep the order of the keys of {part!r:.100}: take a list of pairs, such as "
                "list[tuple[str, int]]"
            )


def adapter_of(shape: dict[str, Any]) -> TypeAdapter[dict[str, Any]]:
    """Return pydantic's adapter for a dictionary with these types. Raises `DeclarationError` for an `OrderedDict`."""
    for annotation in shape.values():
        refuse_ordered(annotation)
    arguments = cast("Any", TypedDict)("Arguments", shape)
    arguments.__pydantic_config__ = _CONFIG
    # `| None`, because an adapter accepts no config for a bare TypedDict, and the TypedDict's own config only
    # affects validation
    optional: Any = arguments | None
    adapter: TypeAdapter[dict[str, Any]] = TypeAdapter(optional, config=_CONFIG)
    if hasattr(adapter, "rebuild"):  # pydantic 2.10 and newer defer unresolved names
        adapter.rebuild()
    return adapter


def as_jsonb(encoded: bytes) -> bytes:
    """Return `encoded` as PostgreSQL's jsonb returns it, with all digits written out: 1e23 becomes a whole number."""
    if not _EXPONENT.search(encoded):
        return encoded
    return json.dumps(json.loads(encoded, parse_float=_written_out)).encode()


def _written_out(number: str) -> int | float:
    digits = f"{Decimal(number):f}"
    return float(number) if "." in digits else int(digits)


def is_same(one: Any, other: Any) -> bool:
    """Return whether two values are equal, or have the same type and equal parts.

    `==` alone would refuse a time in the hour that a clock change repeats. Such a time never equals a time in another
    zone (PEP 495).
    """
    try:
        if bool(one == other):
            return True
        if type(one) is not type(other):
            return False
        if isinstance(one, datetime):
            return one.utcoffset() is not None and one.astimezone(UTC) == other.astimezone(UTC)
        if isinstance(one, dict):
            return one.keys() == other.keys() and all(is_same(one[key], other[key]) for key in one)
        if isinstance(one, list | tuple):
            return len(one) == len(other) and all(map(is_same, one, other))
        if isinstance(one, BaseModel):
            return is_same(one.__getstate__(), other.__getstate__())
        if is_dataclass(one):
            return all(is_same(getattr(one, field.name), getattr(other, field.name)) for field in fields(one))
    except Exception:  # noqa: BLE001 - values whose == raises, or returns an array, are not equal
        return False
    return False


def decode_result(task: str, result: Any, expected: Any) -> Any:
    """Return a stored result as a value of the type `expected`. Raises `ArgumentsError` if it does not fit."""
    if result is None:
        return None
    try:
        return adapter_of({"result": expected}).validate_json(to_json({"result": result}))["result"]
    except pydantic.ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]["msg"]
    except pydantic.PydanticUserError as error:
        fault = str(error).splitlines()[0]
    raise ArgumentsError(
        f"the stored result of {task} cannot be read as its return type {expected!r} ({fault}): read job.result, or "
        "correct the annotation"
    )


def encode_result(value: Any) -> str | None:
    """Return a task's result as JSON text, `None` for `None`.

    Raises `ArgumentsError` for a row, and for a value that is not JSON.
    """
    if value is None:
        return None
    refuse_rows("the result", value, remedy="return its key")
    try:
        encoded = to_json(value, inf_nan_mode="constants", bytes_mode="base64")
        from_json(encoded, allow_inf_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise ArgumentsError(f"the result, a {type(value).__name__}, is not JSON: {error}; {_RETURN}") from None
    if fault := too_much(encoded):
        raise ArgumentsError(f"the result {fault}")
    return encoded.decode()


def too_much(encoded: bytes) -> str | None:
    """Return the reason why the JSON cannot be stored, or None if it can."""
    if len(encoded) > MAX_BYTES:
        return f"is {len(encoded):,} bytes of JSON, at most {MAX_BYTES:,} are kept: store the data and give its key"
    if b"\\u0000" in encoded and _NUL.search(encoded):
        return "holds a NUL character, which PostgreSQL cannot store"
    return None
