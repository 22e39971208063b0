"""Sphinx: `make docs`."""

from __future__ import annotations

import re
import warnings
from importlib import import_module, metadata
from typing import Any, ClassVar

import click
from docutils import nodes
from sphinx import addnodes
from sphinx.util.docutils import SphinxDirective

from sqla_jobs.rules.wording import REPOSITORY

project = "sqla_jobs"
author = "The sqla_jobs authors"
release = metadata.version("sqla-jobs")
extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "sqla_jobs"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
default_role = "code"  # a single backtick in a docstring
maximum_signature_line_length = 80

_CONSTRUCTED = {"sqla_jobs.Jobs", "sqla_jobs.Snooze", "sqla_jobs.Cancel"}
"""Classes that an application makes instances of; others come from a method, and show no signature."""

# autodoc looks at columns of mixins, which are columns only once they are mapped
warnings.filterwarnings("ignore", "Unmanaged access of declarative attribute")


def _within_the_docs(app: Any, name: str, source: list[str]) -> None:
    """Pages link to one another as files of the repository; what is no page here loses its link."""
    text = source[0].replace(f"]({REPOSITORY}/blob/main/", "](")  # the links of the README
    text = text.replace("](../README.md)", "](quickstart.md)")
    text = text.replace("](../CHANGELOG.md)", "](changelog.md)").replace("](../CONTRIBUTING.md)", "](contributing.md)")
    text = text.replace("](../SECURITY.md)", "](security.md)").replace("](SECURITY.md)", "](security.md)")
    text = text.replace("](docs/", "](").replace("](CHANGELOG.md)", "](changelog.md)")
    text = text.replace("](CONTRIBUTING.md)", "](contributing.md)")
    source[0] = re.sub(r"\[([^\]]+)\]\((?:\.\./)?(?:examples|benchmarks|tests)/[^)]*\)", r"\1", text)


def _included(app: Any, relative: Any, parent: str, content: list[str]) -> None:
    _within_the_docs(app, parent, content)


def _without_constructor(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    if what in ("class", "exception") and name not in _CONSTRUCTED and signature:
        return "", None
    return signature, returns


def _arguments_as_fields(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """A list of arguments, ``- `name`, `other`: what they are``, becomes fields, which Sphinx shows as parameters."""

    def field(item: re.Match[str]) -> str:
        names = item[1].replace("`", "").replace(", ", "/")  # a space would make the first of them a type
        return f":param {names.replace('*', chr(92) + '*')}: "

    if what in ("class", "function", "method") and all(
        re.match(r"- `[^`]+`(?:, `[^`]+`)*: ", line) for line in lines if line.startswith("- ")
    ):
        lines[:] = [re.sub(r"^- (`[^`]+`(?:, `[^`]+`)*): ", field, line) for line in lines]


def _without_values_of_columns(app: Any, doctree: Any) -> None:
    for node in list(doctree.findall(addnodes.desc_annotation)):
        if "MappedColumn object" in node.astext():
            node.parent.remove(node)


class _CommandOptions(SphinxDirective):
    """``.. command-options:: MODULE:NAME``: the options of a command, as its `--help` describes them."""

    required_arguments: ClassVar[int] = 1

    def run(self) -> list[nodes.Node]:
        module, _, name = self.arguments[0].partition(":")
        command: click.Command = getattr(import_module(module), name)
        context = click.Context(command, max_content_width=1000)
        records = [
            record
            for option in command.params
            if isinstance(option, click.Option) and (record := option.get_help_record(context))
        ]
        return self.parse_text_to_nodes("".join(f".. option:: {option}\n\n   {text}\n\n" for option, text in records))


def setup(app: Any) -> None:
    app.add_directive("command-options", _CommandOptions)
    app.connect("doctree-read", _without_values_of_columns)
    app.connect("autodoc-process-docstring", _arguments_as_fields)
    app.connect("autodoc-process-signature", _without_constructor)
    app.connect("source-read", _within_the_docs)
    app.connect("include-read", _included)
