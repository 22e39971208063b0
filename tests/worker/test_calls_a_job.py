"""What a job costs, as a number that is the same on every machine: calls of Python functions in a worker's threads.

`python -m benchmarks.cost` names the functions.
"""

from __future__ import annotations

import pytest
from sqlalchemy import Engine

from benchmarks.cost import count_calls

MOST = {
    "plain": 14,
    "transactional": 640,
    "limited": 200,
    "coroutine": 54,
}
"""Lowered whenever the code gets better. Each is what was measured on a busy machine, where limited jobs are claimed
one by one, and up to a tenth more."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", MOST)
def test_a_job_takes_no_more_calls_than_it_did(engine: Engine, kind: str) -> None:
    """Calls for each batch are left out: on a machine that others keep busy there are more batches."""
    functions = count_calls(engine, kind, drains=1, count=1200).functions
    most_called = "\n".join(f"{number:10.3f}  {function}" for function, number in functions[:60])
    assert sum(int(number + 0.1) for _, number in functions) <= MOST[kind], most_called
