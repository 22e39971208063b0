"""Which processes may run a job, by the arguments that their rows say their tasks take."""

from __future__ import annotations

import pytest

from sqla_jobs.rules.fitting import Takes

OLD = Takes(("to",), ("cc", "bcc"), "d1")
NEW = Takes(("to", "text"), (), "d2")
NONE = Takes((), (), "")


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
