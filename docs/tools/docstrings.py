"""Docstrings as autodoc shows them."""

from __future__ import annotations

import re
from typing import Any

from sphinx import addnodes

CONSTRUCTED = {"Jobs", "Unique", "ConcurrencyLimit", "RateLimit", "Retry", "Snooze", "Cancel", "FlaskJobs"}
"""Applications make objects of these classes. The library makes those of the others, so their page has no signature."""


def as_rst(app: Any, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """Turn what stands in single backticks into code, and the names of classes into links."""
    text = re.sub(r"(\w)_\b", r"\1\\_", "\n".join(lines).replace("*", r"\*"))
    lines[:] = re.sub(r"`([^`]+)`(\w?)", _code, text).split("\n")


def _code(match: re.Match[str]) -> str:
    inside, after = re.sub(r"\\([*_])", r"\1", match[1]), match[2]
    role = f":py:obj:`.{inside}`" if re.fullmatch("[A-Z][a-z]+[A-Z]?[A-Za-z]*", inside) else f"``{inside}``"
    return f"{role}\\ {after}" if after else role


def without_signature(
    app: Any, what: str, name: str, value: object, options: object, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    is_made_by_us = what in ("class", "exception") and name.rpartition(".")[2] not in CONSTRUCTED
    return ("", None) if signature and is_made_by_us else (signature, returns)


def without_values(app: Any, page: Any) -> None:
    """Remove the values of attributes that are no literals, such as those of columns."""
    for node in list(page.findall(addnodes.desc_annotation)):
        if node.astext().startswith(" = <"):
            node.parent.remove(node)
