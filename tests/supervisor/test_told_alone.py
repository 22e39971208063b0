"""The parent tells one child at a time: which one, who answers for the jobs, and where a message ends."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from sqla_jobs.runtime.set_aside import SetAside
from sqla_jobs.runtime.settings import Settings
from sqla_jobs.supervisor.database import Database
from sqla_jobs.supervisor.lookout import ParentLookout
from sqla_jobs.supervisor.messages import Address, FoundMore, Heard, PassOn, TableNames
from sqla_jobs.worker.backlog import Backlog
from sqla_jobs.worker.claimer import _answer
from sqla_jobs.worker.lane import Lane


@dataclass
class Child:
    """A child that always shows a free slot, and answers for nothing: a slot of another queue is free."""

    pid: int
    heard: list[bool] = field(default_factory=list[bool])
    """For each message, whether this child alone was told."""
    started: Any = field(default_factory=lambda: SimpleNamespace(has_free_slot=True))

    def hint(self, message: Heard) -> None:
        self.heard.append(message.is_alone)


SETTINGS = Settings(
    5.0, 30.0, {"default": 1}, poll=1.0, grace=1.0, slow_after=300.0, timeout=None, kill_after=10.0, retention=None
)


def lookout_of(children: list[Child]) -> ParentLookout:
    return ParentLookout(
        Database(Address(TableNames(None, "sqla_"), {}, {}), patience=5.0),
        SETTINGS,
        SetAside(),
        tasks=(),
        connections=0,
        children=lambda: children,  # type: ignore[arg-type,return-value]
    )


@pytest.mark.parametrize("count", [1, 2, 24])
def test_a_message_for_which_no_child_answers_ends_with_all(count: int) -> None:
    children = [Child(pid) for pid in random.sample(range(1000), count)]
    lookout = lookout_of(children)
    lookout.heard("")
    passed_on = list[Child]()
    while asked := [child for child in children if True in child.heard]:
        asked[0].heard.clear()
        passed_on += asked
        assert len(passed_on) <= count
        lookout.hear(PassOn(""), asked[0])  # type: ignore[arg-type]
    assert [child.heard for child in children if child is not passed_on[-1]] == [[False]] * (count - 1)


def test_a_child_that_has_found_more_is_not_the_next_one() -> None:
    children = [Child(1), Child(2)]
    lookout = lookout_of(children)
    for _ in range(4):
        lookout.hear(FoundMore(""), children[0])  # type: ignore[arg-type]
    assert [child.heard for child in children] == [[], [True] * 4]


def test_a_worker_answers_with_a_free_slot_until_it_has_told_others() -> None:
    lane, other = Lane(Backlog("default", 1)), Lane(Backlog("other", 1))
    assert _answer([lane, other], "")
    lane.may_tell = False
    assert not _answer([lane, other], "")
    assert not _answer([lane], "default")
    assert _answer([lane, other], "other")
    lane.rest(0.0)
    assert _answer([lane], "default")
    lane.backlog._running = 1
    assert not _answer([lane], "default")
    assert not _answer([lane], "unknown")
