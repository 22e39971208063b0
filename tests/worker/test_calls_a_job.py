"""What a job costs, as a number that is the same on every machine: calls of Python functions in a worker's threads.

`python -m benchmarks.calls` names the functions.
"""

from __future__ import annotations

import pytest
from sqlalchemy import Engine

from benchmarks.calls import _COUNTS, count_calls
from benchmarks.versions import KINDS

MOST = {
    "plain": 17,
    "transactional": 612,
    "limited": 217,
    "coroutine": 62,
}
"""Lowered whenever the code gets better. Each is what was measured and up to a tenth more: on a machine that others
keep busy there are more batches, and more turns of the event loop."""


def test_each_kind_has_its_bound() -> None:
    assert tuple(MOST) == KINDS


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_job_takes_no_more_calls_than_it_did(engine: Engine, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of few jobs, so there are somewhat more calls than `python -m benchmarks.calls` finds."""
    monkeypatch.setattr("benchmarks.calls._DRAINS", 2)
    for name, count in _COUNTS.items():
        monkeypatch.setitem(_COUNTS, name, count // 4)
    calls = count_calls(engine, kind)
    for _ in range(3):
        if calls.python > MOST[kind]:  # others kept the machine busy, or it is so
            calls = count_calls(engine, kind)
    most_called = "\n".join(f"{number:10.3f}  {function}" for function, number in calls.functions[:60])
    assert calls.python <= MOST[kind], most_called
