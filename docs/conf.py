"""Sphinx: `make docs`."""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent))

from tools import docstrings, options, packages, statements

from sqla_jobs.rules.wording import REPOSITORY

project = "sqla_jobs"
author = "The sqla_jobs authors"
release = metadata.version("sqla-jobs")
extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
exclude_patterns = ["made/worker-options.md"]
html_theme = "furo"
html_title = "sqla_jobs"
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100

MADE = Path(__file__).parent / "made"
"""What is made from the code, here and not in the build's folder, since pages include it and link to it."""


def _make(app: Any) -> None:
    MADE.mkdir(exist_ok=True)
    made = {"packages.svg": packages.drawing, "statements.md": statements.page, "worker-options.md": options.table}
    for name, make in made.items():
        MADE.joinpath(name).write_text(make(), encoding="utf-8")


def _within_the_docs(app: Any, name: str, source: list[str]) -> None:
    """Pages link to one another as files of the repository; what is no page here loses its link."""
    text = source[0].replace(f"]({REPOSITORY}/blob/main/", "](")  # the links of the README
    text = text.replace("](../README.md)", "](quickstart.md)")
    text = text.replace("](../CHANGELOG.md)", "](changelog.md)").replace("](../CONTRIBUTING.md", "](contributing.md")
    text = text.replace("](../SECURITY.md)", "](security.md)").replace("](SECURITY.md)", "](security.md)")
    text = text.replace("](docs/", "](").replace("](CHANGELOG.md)", "](changelog.md)")
    text = text.replace("](CONTRIBUTING.md)", "](contributing.md)")
    text = re.sub(r"^(\.\. autoclass:: .*\n)(?!   :)", r"\1   :members:\n", text, flags=re.MULTILINE)  # unless told
    text = re.sub(r"<!-- drawn: (\S+) -->", r"![](made/\1)", text)
    source[0] = re.sub(r"\[([^\]]+)\]\((?:\.\./)?(?:examples|benchmarks|tests)/[^)]*\)", r"\1", text)


def _included(app: Any, relative: Any, parent: str, content: list[str]) -> None:
    _within_the_docs(app, parent, content)


def setup(app: Any) -> None:
    app.connect("builder-inited", _make)
    app.connect("source-read", _within_the_docs)
    app.connect("include-read", _included)
    app.connect("autodoc-process-docstring", docstrings.as_rst)
    app.connect("autodoc-process-signature", docstrings.without_signature)
    app.connect("doctree-read", docstrings.without_values)
