"""Which processes may run a job, by the arguments that their rows say their tasks take."""

from __future__ import annotations

from typing import Any

import pytest

from sqla_jobs.rules.fitting import Takes

OLD = Takes(("to",), ("cc", "bcc"), "d1")
NEW = Takes(("to", "text"), (), "d2")
NONE = Takes((), (), "")


@pytest.mark.parametrize(
    ("takes", "shown", "text"),
    [
        (OLD, {"required": ["to"], "optional": ["cc", "bcc"], "types": "d1"}, "to, cc=…, bcc=…"),
        (NEW, {"required": ["to", "text"], "optional": [], "types": "d2"}, "to, text"),
        (NONE, {"required": [], "optional": [], "types": ""}, ""),
    ],
)
def test_what_a_task_takes_is_written_and_read(takes: Takes, shown: dict[str, Any], text: str) -> None:
    assert takes.shown() == shown
    assert Takes.read(shown) == takes
    assert str(takes) == text


@pytest.mark.parametrize(
    ("shown", "takes"),
    [
        (None, None),
        ({}, NONE),
        ({"required": "to", "optional": {"cc": 1}}, NONE),
        ({"required": [1], "optional": [None], "types": 2}, Takes(("1",), ("None",), "2")),
    ],
)
def test_another_form_in_a_row_is_no_error(shown: object, takes: Takes | None) -> None:
    assert Takes.read(shown) == takes


@pytest.mark.parametrize(
    ("given", "fits"),
    [(["to"], True), (["bcc", "to"], True), (["to", "cc", "bcc"], True), (["cc"], False), (["to", "text"], False)],
)
def test_arguments_fit_if_no_required_one_is_missing_and_each_is_known(given: list[str], fits: bool) -> None:
    assert OLD.fits(given) == fits
