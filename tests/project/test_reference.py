"""docs/reference.md is what `python -m tests.reference` makes, and has every public name."""

from __future__ import annotations

import re

from tests.project.test_public_names import PUBLIC
from tests.reference.contents import MODELS
from tests.reference.page import PAGE, page, undescribed, unlisted

RENEW = "renew the reference: python -m tests.reference"


def test_the_reference_is_what_signatures_and_docstrings_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), RENEW


def test_every_public_name_is_in_the_reference() -> None:
    headings = set(re.findall(r"^#+ `(?:class )?([\w.]+)`$", page(), re.MULTILINE))
    models = {f"jobs.{model}" for model in MODELS}
    assert {"jobs.Job", "jobs.Batch"} <= models <= headings
    public = {name for names in PUBLIC.values() for name in names}
    assert public - headings == {"JobMixin", "BatchMixin"}  # which are jobs.Job and jobs.Batch
    assert "of class `JobMixin`" in page()


def test_every_parameter_and_field_of_the_reference_is_described() -> None:
    assert list(undescribed()) == []


def test_each_item_of_a_list_has_a_line_of_its_own() -> None:
    assert re.findall(r"^- .*\. - `.*", page(), re.MULTILINE) == []


def test_every_method_and_property_is_in_the_reference() -> None:
    """Or is named there as no part of the interface."""
    assert list(unlisted()) == []
