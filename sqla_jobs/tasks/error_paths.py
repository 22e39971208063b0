"""The paths in pydantic's errors, without the parts that come from the value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args

from pydantic_core.core_schema import ErrorType

MASK = "***"
_Node = tuple[Mapping[str, Any], bool]
"""A core schema, and whether pydantic alone makes the paths below it. A validator of the application may raise the
error of another validation, whose path has keys of the value in it."""
_INNER = ("schema", "lax_schema", "strict_schema", "json_schema", "python_schema")
_KINDS = frozenset[str](get_args(ErrorType))


def declared_path(schema: Mapping[str, Any], path: Iterable[int | str]) -> list[str]:
    """Return the path of an error, with a mask in place of each part that the type does not declare.

    Names of fields, positions in lists and members of unions are declared. Keys of dictionaries, names of surplus
    fields and tags are in the value. A part that this function does not know is masked.
    """
    definitions = {one["ref"]: one for one in schema.get("definitions", ())}
    nodes: list[_Node] = [(schema, True)]
    shown: list[str] = []
    for part in path:
        found = [one for node in _opened(nodes, definitions) if (one := _entered(*node, part)) is not None]
        is_declared = bool(found) and all(is_declared for is_declared, _ in found)
        nodes = [node for _, below in found for node in below]
        shown.append(str(part) if is_declared else MASK)
    return shown


def field_names(schema: Mapping[str, Any], arguments: Iterable[str]) -> set[str]:
    """Return the names of fields that the types of these arguments declare, at any depth."""
    definitions = {one["ref"]: one for one in schema.get("definitions", ())}
    whole = next(node for node, _ in _opened([(schema, True)], definitions) if node["type"] == "typed-dict")
    left: list[Any] = [whole["fields"][name]["schema"] for name in arguments]
    found, seen = set[str](), set[int]()
    while left:
        node = left.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        match node:
            case {"schema_ref": str(ref)}:
                left.append(definitions[ref])
            case {"type": "typed-dict" | "model-fields", "fields": fields}:
                found.update(*((name, one.get("serialization_alias", name)) for name, one in fields.items()))
                left += [*fields.values(), node.get("extras_schema")]
            case {"type": "dataclass-field", "name": name}:
                found |= {name, node.get("serialization_alias", name)}
                left.append(node["schema"])
            case dict():
                left += node.values()
            case list() | tuple():
                left += node
            case _:
                pass
    return found


def declared_kind(kind: str) -> str:
    """Return the kind of an error; an application's validators may make kinds of a value."""
    return kind if kind in _KINDS else "custom_error"


def _opened(nodes: list[_Node], definitions: Mapping[str, Any]) -> Iterator[_Node]:
    """Yield the schemas inside those that add nothing to a path."""
    left, seen = [*nodes], set[tuple[int, bool]]()
    while left:
        node, is_certain = left.pop()
        if (id(node), is_certain) in seen:
            continue
        seen.add((id(node), is_certain))
        yield node, is_certain
        if node["type"] == "definition-ref":
            left.append((definitions.get(node["schema_ref"], {"type": "any"}), is_certain))
        is_certain = is_certain and not node["type"].startswith("function-")
        left += [(node[name], is_certain) for name in _INNER if name in node]
        left += [(one, is_certain) for one in node.get("steps", ())]


def _entered(node: Mapping[str, Any], is_certain: bool, part: int | str) -> tuple[bool, list[_Node]] | None:
    """Return whether the schema declares this part of a path, and the schemas below it. None if it has no such part."""
    below: Iterable[Any]
    match node["type"]:
        case "typed-dict" | "model-fields":
            below = [one["schema"] for name, one in node["fields"].items() if part in _names(name, one)]
        case "dataclass-args":
            below = [one["schema"] for one in node["fields"] if part in _names(one["name"], one)]
        case "list" | "set" | "frozenset" | "generator" | "tuple" if isinstance(part, int):
            items = node.get("items_schema", [])
            below = items if isinstance(items, list) else [items]
            return is_certain, [(one, is_certain) for one in below]
        case "union":
            below = [one[0] if isinstance(one, tuple) else one for one in node["choices"]]
            return is_certain, [(one, is_certain) for one in below]
        case "tagged-union":  # the tag is in the value
            return False, [(one, is_certain) for tag, one in node["choices"].items() if part in (tag, str(tag))]
        case "dict":
            return False, [(node["values_schema"], is_certain)] if "values_schema" in node else []
        case _:
            return None
    return (True, [(one, is_certain) for one in below]) if below else None


def _names(name: str, field: Mapping[str, Any]) -> set[Any]:
    """Return the names of a field in paths."""
    alias = field.get("validation_alias", name)
    choices = [alias] if isinstance(alias, str) else alias
    return {name, *(one if isinstance(one, str | int) else one[0] for one in choices)}
