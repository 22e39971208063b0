"""Sphinx: `make docs`."""

from __future__ import annotations

import re
from importlib import metadata
from typing import Any

from sqla_jobs.rules.wording import REPOSITORY

project = "sqla_jobs"
author = "The sqla_jobs authors"
release = metadata.version("sqla-jobs")
extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "sqla_jobs"


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


def setup(app: Any) -> None:
    app.connect("source-read", _within_the_docs)
    app.connect("include-read", _included)
