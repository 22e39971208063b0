"""Which processes may run a job, by the arguments that their rows say their tasks take."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest

from sqla_jobs.rules.fitting import Code, Takes, read_codes

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


@pytest.mark.parametrize(
    ("queues", "tasks", "may_know", "may_run"),
    [
        ({"mail": 2}, {"send": OLD.shown()}, True, True),
        ({"mail": 2}, {"send": NEW.shown()}, True, False),  # the code that they do not fit
        ({"mail": 2}, {"send": Takes(("a",), (), "").shown()}, True, False),
        ({"mail": 2}, {"send": "?"}, True, True),  # as it may
        ({"mail": 2}, {"other": OLD.shown()}, False, False),
        ({"mail": 2}, None, True, True),  # an older version, which publishes no tasks
        ({"other": 2}, {"send": OLD.shown()}, False, False),
        (None, {"send": OLD.shown()}, False, False),
    ],
)
def test_which_worker_may_run_a_job(queues: object, tasks: object, may_know: bool, may_run: bool) -> None:
    (code,) = read_codes([(queues, tasks)])
    assert code.may_know("send", "mail") == may_know
    assert runs(code, ["to"]) == may_run


def runs(code: Code, given: Collection[str]) -> bool:
    return code.may_run("send", "mail", given, unlike=NEW)


def test_code_like_that_which_refused_the_job_cannot_run_it_whatever_the_names() -> None:
    """The names fit, and a value does not: the types are the same there."""
    code = Code(["mail"], {"send": NEW.shown()})
    assert not runs(code, ["to", "text"])
    assert runs(Code(["mail"], {"send": Takes(NEW.required, (), "d3").shown()}), ["to", "text"])
