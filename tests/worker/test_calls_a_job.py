"""What a job costs, as a number that is the same on every machine: calls of Python functions in a worker's threads.

`python -m benchmarks.calls` names the functions.
"""

from __future__ import annotations

import pytest
from sqlalchemy import Engine

from benchmarks.calls import count_calls
from benchmarks.versions import KINDS

MOST = {
    "plain": 15,
    "transactional": 612,
    "limited": 195,
    "coroutine": 56,
}
"""Lowered whenever the code gets better. Each is what was measured and up to a tenth more: on a machine that others
keep busy there are more batches, and more turns of the event loop."""


def test_each_kind_has_its_bound() -> None:
    assert tuple(MOST) == KINDS


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_job_takes_no_more_calls_than_it_did(engine: Engine, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as fewer:
        fewer.setattr("benchmarks.calls._DRAINS", 2)
        calls = count_calls(engine, kind)
    for _ in range(3):
        if calls.python > MOST[kind]:  # others kept the machine busy, or it is so
            calls = count_calls(engine, kind)
    most_called = "\n".join(f"{number:10.3f}  {function}" for function, number in calls.functions[:60])
    assert calls.python <= MOST[kind], most_called
