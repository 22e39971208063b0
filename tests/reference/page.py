"""Writes docs/reference.md, as Markdown that GitHub shows too."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterable, Iterator
from typing import Any

import click
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import registry

from sqla_jobs.cli.running import worker
from sqla_jobs.models.columns import JobMixin
from sqla_jobs.models.mapping import map_models
from tests.conftest import ROOT
from tests.reference.contents import INTRODUCTION, MODELS, OF_WORKFLOWS, SECTIONS, TYPES, Entry
from tests.reference.sources import Found, Function, below, decorators, fields, find, method, named

PAGE = ROOT / "docs/reference.md"
_WIDTH = 100
"""Characters of a signature that stands in one line."""
_ENTRIES = {entry.name: entry for section in SECTIONS for entry in section.entries}


def page() -> str:
    parts: list[str] = [INTRODUCTION]
    for section in SECTIONS:
        parts += [f"## {section.title}\n"] + [f"{section.text}\n"] * bool(section.text)
        for entry in section.entries:
            parts += _entry(entry)
        if section.title == "Models":
            parts += _models()
        if section.title == "Options of a worker":
            parts.append(_worker_options())
    parts += _types()
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip() + "\n"


def undescribed() -> Iterator[str]:
    """Parameters and fields without a word of their own."""
    for entry in _ENTRIES.values():
        found = find(entry.module, entry.name)
        if isinstance(found.node, ast.FunctionDef):
            yield from _undescribed(found.node, ast.get_docstring(found.node) or "")
        elif isinstance(found.node, ast.ClassDef):
            if entry.is_constructed:
                yield from _undescribed(method(found, "__init__"), ast.get_docstring(found.node) or "")
            yield from (f"{entry.name}.{name}" for name, _, text in _fields(entry, found) if not text)
            for node in (method(found, name) for name in entry.members):
                yield from _undescribed(node, ast.get_docstring(node) or "")


def _undescribed(node: Function, text: str) -> Iterator[str]:
    """Parameters that the docstring does not name. The introduction describes `session`, a type of its own options."""
    if _scope(node) or _is_command(node):
        return
    given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
    names = [one.arg for one in given if one is not None and "Unpack" not in _written(one.annotation)]
    for name in names:
        if name not in ("self", "cls", "session") and not re.search(f"`{name}[`=]", text):
            yield f"{node.name}({name})"


def unlisted() -> Iterator[str]:
    """Methods and properties of the classes on the page that are not on it."""
    for entry in _ENTRIES.values():
        node = find(entry.module, entry.name).node
        body = node.body if isinstance(node, ast.ClassDef) and entry.receiver else []
        for one in (one for one in body if isinstance(one, Function) and not _is_deprecated(one)):
            if not one.name.startswith("_") and one.name not in (*entry.members, *entry.hidden):
                yield f"{entry.name}.{one.name}"


# one entry


def _entry(entry: Entry) -> Iterator[str]:
    found = find(entry.module, entry.name)
    yield f"### `{entry.heading}`\n"
    if isinstance(found.node, ast.FunctionDef):
        yield from _function(found.node)
    elif isinstance(found.node, ast.ClassDef):
        yield from _class(entry, found, found.node)
    else:
        yield _prose(found.text)


def _function(node: ast.FunctionDef) -> Iterator[str]:
    if scope := _scope(node):
        gives = re.sub(r"^Iterator\[(.*)\]$", r"\1", _written(node.returns))
        yield _linked(f"A fixture of scope *{scope}* that gives `{gives}`.\n")
    elif not _is_command(node):
        yield _signature(node, node.name, is_method=False)
    yield _prose(ast.get_docstring(node), node.name)


def _is_command(node: Function) -> bool:
    return any(one.startswith("click.") for one in decorators(node))


def _is_deprecated(node: Function) -> bool:
    return any(one.startswith("deprecated") for one in decorators(node))


def _scope(node: Function) -> str:
    """The scope of a fixture; empty for what is none."""
    said = next((one for one in decorators(node) if one.startswith("pytest.fixture")), "")
    return ("session" if "session" in said else "function") if said else ""


def _class(entry: Entry, found: Found, node: ast.ClassDef) -> Iterator[str]:
    bases = [ast.unparse(one) for one in node.bases]
    if entry.is_constructed:
        yield _signature(method(found, "__init__"), node.name, is_method=True)
    if ours := [f"[`{one}`](#{_anchor(one)})" if one in _ENTRIES else f"`{one}`" for one in bases if "Error" in one]:
        yield f"A subclass of {' and '.join(ours)}.\n"
    yield _prose(ast.get_docstring(node), node.name)
    rows = [] if entry.is_constructed else list(_fields(entry, found))
    if rows and "StrEnum" in bases:
        yield _table(("value", "meaning"), ((f"`{name}`", _linked(_cell(text))) for name, _, text in rows))
    elif rows:
        said = ((f"`{name}`", _code(kind), _linked(_cell(text))) for name, kind, text in rows)
        yield _table(("name", "type", "meaning"), said)
    for name in entry.members:
        yield from _member(entry, name, method(found, name))


def _fields(entry: Entry, found: Found) -> list[tuple[str, str, str]]:
    return [] if entry.is_constructed else [one for one in fields(found) if one[0] not in entry.hidden]


def _member(entry: Entry, name: str, node: Function) -> Iterator[str]:
    called = entry.receiver if name == "__call__" else f"{entry.receiver}.{name}"
    if "classmethod" in decorators(node):
        called = f"{entry.name}.{name}"
    yield f"#### `{called}`\n"
    if "property" in decorators(node):
        yield f"```python\n{called}: {_written(node.returns)}\n```\n"
    else:
        yield _signature(node, called, is_method=True)
    yield _prose(ast.get_docstring(node))


def _signature(node: Function, called: str, *, is_method: bool) -> str:
    """The call as one types it; in several lines where it is long."""
    given = node.args
    positional = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(positional) - len(given.defaults)) + list(given.defaults)
    parts = [_parameter(*one) for one in zip(positional, defaults, strict=True)]
    if given.posonlyargs:
        parts.insert(len(given.posonlyargs), "/")
    if given.vararg:
        parts.append("*" + _parameter(given.vararg, None))
    elif given.kwonlyargs:
        parts.append("*")
    parts += [_parameter(*one) for one in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    if given.kwarg:
        parts.append("**" + _parameter(given.kwarg, None))
    parts = parts[is_method:]
    returns = "" if node.name == "__init__" else f" -> {_written(node.returns)}"
    if "contextmanager" in decorators(node):
        returns = returns.replace("Generator[", "AbstractContextManager[")
    begins = f"{'await ' if isinstance(node, ast.AsyncFunctionDef) else ''}{called}("
    whole = f"{begins}{', '.join(parts)}){returns}"
    if len(whole) > _WIDTH:
        whole = "\n".join([begins, *(f"    {part}," for part in parts), f"){returns}"])
    return f"```python\n{whole}\n```\n"


def _parameter(one: ast.arg, default: ast.expr | None) -> str:
    said = one.arg if one.annotation is None else f"{one.arg}: {_written(one.annotation)}"
    if default is None:
        return said
    value = _written(default)
    return f"{said} = {'...' if re.fullmatch('_?[A-Z]+', value) else value}"  # a constant of the library's own


def _written(node: ast.expr | None) -> str:
    return "" if node is None else ast.unparse(node).replace("'", '"')


# models, options and types


def _models() -> Iterator[str]:
    """The columns of each model: their Python types from the annotations, those of the database from the tables."""
    mapped = map_models(registry(), None, "sqla_", JobMixin)
    for model in MODELS:
        mixin = find(f"sqla_jobs.models.{'workflow_' if model in OF_WORKFLOWS else ''}columns", f"{model}Mixin")
        assert isinstance(mixin.node, ast.ClassDef)
        made = getattr(mapped, model).__table__
        yield f"### `jobs.{model}`\n"
        yield f"Table `{made.name}`{', of class `JobMixin` or your `job_class`' if model == 'Job' else ''}.\n"
        yield _prose(ast.get_docstring(mixin.node))
        head = ("column", "Python", "PostgreSQL", "meaning")
        yield _table(
            head,
            (
                (f"`{column}`", _code(_unmapped(kind)), _stored(made.columns[column]), _linked(_cell(text)))
                for column, kind, text in fields(mixin)
                if column in made.columns
            ),
        )
        yield from _beside_columns(mixin.node)


def _beside_columns(mixin: ast.ClassDef) -> Iterator[str]:
    """Relationships, which are declared for type checkers alone, and properties."""
    for node in mixin.body:
        for one, text in below(node.body if isinstance(node, ast.If) else []):
            if isinstance(one, ast.AnnAssign) and text:
                yield f"- `{named(one)}`: `{_unmapped(_written(one.annotation))}`. {_linked(_line(text))}"
        if isinstance(node, ast.FunctionDef) and "property" in decorators(node):
            text = ast.get_docstring(node) or ""
            yield f"- `{node.name}`: `{_written(node.returns)}`. {_linked(_line(text))}"
    yield ""


def _unmapped(kind: str) -> str:
    return re.sub(r"^Mapped\[(.*)\]$", r"\1", kind)


def _stored(column: Any) -> str:
    kind: str = column.type.compile(dialect=postgresql.dialect())  # type: ignore[no-untyped-call]
    kind = kind.replace(' COLLATE "C"', "").replace("TIMESTAMP WITH TIME ZONE", "TIMESTAMPTZ").lower()
    if column.identity is not None:
        return f"`{kind}`, identity"
    if column.server_default is None:
        return f"`{kind}`"
    default = str(column.server_default.arg)
    if re.fullmatch("[a-zA-Z]*", default) and default not in ("true", "false"):
        default = f"'{default}'"
    return f"`{kind}`, {'now' if default == 'clock_timestamp()' else f'`{default}`'}"


def _worker_options() -> str:
    def row(option: click.Option) -> tuple[str, str, str]:
        takes = option.metavar or option.type.name.upper()
        if isinstance(option.type, click.Choice):
            takes = "|".join(map(str, option.type.choices))
        names = " / ".join([*option.opts, *option.secondary_opts])
        has_default = isinstance(option.default, str | int | float) and option.default != "" and not option.is_flag
        default = f"`{option.default}`" if has_default else ""
        return _code(names if option.is_flag else f"{names} {takes}"), default, _cell(option.help or "")

    options = (row(one) for one in worker.params if isinstance(one, click.Option))
    return _table(("option", "default", "meaning"), options)


def _types() -> Iterator[str]:
    yield "## Types in signatures\n"
    rows: list[tuple[str, str, str]] = []
    for name, module, said in TYPES:
        found = find(module, name) if module else None
        value = found.node.value if found and isinstance(found.node, ast.Assign | ast.AnnAssign) else None
        rows.append((_code(name), _code(_written(value)), _linked(said or _cell(found.text if found else ""))))
    yield _table(("name", "stands for", "meaning"), rows)


# Markdown


def _prose(docstring: str | None, own: str = "") -> str:
    """A docstring, with a paragraph of its own for the errors."""
    paragraphs: list[str] = []
    raised: list[str] = []
    for paragraph in inspect.cleandoc(docstring or "").split("\n\n"):
        if paragraph.startswith("- "):
            items = re.split("^- ", paragraph, flags=re.MULTILINE)[1:]
            paragraphs.append("\n".join(f"- {_line(item)}" for item in items))
            continue
        sentences = re.split(r"(?<=[.:]) (?=[A-Z`])", _line(paragraph))
        raised += [one.removeprefix("Raises ") for one in sentences if one.startswith("Raises ")]
        paragraphs.append(" ".join(one for one in sentences if not one.startswith("Raises ")))
    if raised:
        paragraphs.append(f"**Raises** {' '.join(raised)}")
    return _linked("\n\n".join(filter(None, paragraphs)), own) + "\n"


def _linked(text: str, own: str = "") -> str:
    """Classes of this page become links."""

    def link(match: re.Match[str]) -> str:
        entry = _ENTRIES.get(match[1])
        return match[0] if entry is None or match[1] == own else f"[`{match[1]}`](#{_anchor(entry.heading)})"

    return re.sub(r"(?<!\[)`([A-Z]\w+)`", link, text)


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    names = list(head)
    lines = [names, ["---"] * len(names), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _code(text: str) -> str:
    return f"`{_cell(text)}`" if text else ""


def _cell(text: str) -> str:
    return _line(text).replace("|", r"\|")


def _line(text: str) -> str:
    return " ".join(text.split())
