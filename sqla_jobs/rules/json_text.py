"""JSON for people: indented, and each number with exactly the stored digits. Pure functions."""

from __future__ import annotations

import json
from typing import Any, cast

from sqla_jobs.rules.redaction import Digits, check_depth


def parse(text: str) -> Any:
    """Parse JSON, with numbers as `Digits`. Raises `ValueError` if it is invalid, or nested too deeply."""
    try:
        value = json.loads(text, parse_int=Digits, parse_float=Digits, parse_constant=Digits)
    except RecursionError:
        raise ValueError("nested too deep") from None
    return check_depth(value)


def pretty(value: Any, indent: str = "") -> str:
    """Write JSON indented by two spaces, with non-ASCII characters unescaped."""
    deeper = indent + "  "
    if isinstance(value, dict) and value:
        items = [f"{deeper}{_text(key)}: {pretty(item, deeper)}" for key, item in cast("dict[str, Any]", value).items()]
        return "{\n" + ",\n".join(items) + f"\n{indent}}}"
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(f"{deeper}{pretty(item, deeper)}" for item in value) + f"\n{indent}]"
    return compact(value)


def compact(value: Any) -> str:
    """Write JSON on one line."""
    if isinstance(value, Digits):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_text(k)}: {compact(v)}" for k, v in cast("dict[str, Any]", value).items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(compact(item) for item in value) + "]"
    return _text(value)


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
