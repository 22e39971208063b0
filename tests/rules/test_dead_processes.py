"""Who is dead, as seen by the clock of whoever looks."""

from __future__ import annotations

import math
import uuid

from sqla_jobs.rules.dead_processes import Sightings

A, B = uuid.uuid4(), uuid.uuid4()


def seen(sightings: Sightings, at: float, took: float = 0.0, **heartbeats: int) -> set[str]:
    rows = {{"a": A, "b": B}[name]: (heartbeat, 10.0) for name, heartbeat in heartbeats.items()}
    silent = sightings.silent(rows, asked_at=at, answered_at=at + took)
    assert all(rows[process_id][0] == heartbeat for process_id, heartbeat in silent.items())
    return {"a" if process_id == A else "b" for process_id in silent}


def test_a_process_is_silent_once_its_heartbeat_was_seen_unchanged_for_a_lease() -> None:
    sightings = Sightings()
    assert seen(sightings, 100, a=1, b=1) == set()
    assert seen(sightings, 109, a=1, b=2) == set()
    assert sightings.due_at == 110, "there is no point in asking before that"
    assert seen(sightings, 110, a=1, b=2) == {"a"}
    assert sightings.due_at == 119
    assert seen(sightings, 118, b=2) == set()
    assert seen(sightings, 120, a=1, b=2) == {"b"}, "what was away is seen for the first time"
    assert seen(sightings, 121) == set()
    assert sightings.due_at == math.inf


def test_a_heartbeat_may_lie_anywhere_in_time() -> None:
    """The server's clock steps: what counts is whether it changes."""
    sightings = Sightings()
    for at, heartbeat in ((100, 5 * 10**15), (108, -5 * 10**15), (116, 5 * 10**15), (124, 0)):
        assert seen(sightings, at, a=heartbeat) == set()


def test_what_an_answer_took_is_not_counted_as_silence() -> None:
    sightings = Sightings()
    assert seen(sightings, 100, took=8, a=1) == set()
    assert seen(sightings, 117, took=50, a=1) == set()
    assert seen(sightings, 118, a=1) == {"a"}


def test_nothing_is_known_after_a_gap() -> None:
    sightings = Sightings()
    assert seen(sightings, 100, a=1) == set()
    sightings.forget()
    assert seen(sightings, 110, a=1) == set()
    assert seen(sightings, 120, a=1) == {"a"}
