"""All interleavings of threads that run real code: each in a greenlet, which stops before all that others may see.

A state is kept as the schedule that leads to it. States are the same if the shared objects are, and if each thread
stands at the same place with the same local variables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator
from typing import Any

from greenlet import getcurrent, greenlet  # type: ignore[import-untyped]

from tests.limits.explorer import Explored, Move, explore


def pause(is_over: Callable[[], bool] = lambda: True) -> None:
    """Let other threads go on, before this one does what they may see; and then wait until `is_over`."""
    scheduler = getcurrent().parent
    assert scheduler is not None
    scheduler.switch(is_over)


class World:
    """Threads, and what they share. A test adds both, always in the same way."""

    def __init__(self) -> None:
        self.shared: list[object] = []
        """Objects whose attributes threads may change."""
        self.has_ended: Callable[[], bool] = lambda: True
        self._threads: list[tuple[str, greenlet]] = []
        self._may_go_on: dict[greenlet, Callable[[], bool]] = {}

    def thread(self, name: str, run: Callable[[], object]) -> None:
        """Start a thread. It stands before its first step."""
        thread = greenlet(run, parent=getcurrent().parent or getcurrent())
        self._threads.append((name, thread))
        self._may_go_on[thread] = lambda: True

    def step(self, number: int) -> str:
        """Let a thread run to its next pause. Return its name."""
        name, thread = self._threads[number]
        is_over = thread.switch()
        self._may_go_on[thread] = (lambda: False) if thread.dead else is_over
        return name

    def ready(self) -> list[int]:
        """Return the threads that can take a step."""
        return [n for n, (_, thread) in enumerate(self._threads) if self._may_go_on[thread]()]

    def close(self) -> None:
        """End the threads. Otherwise their stacks would be kept forever: no garbage collector looks at them."""
        for _, thread in self._threads:
            while thread and not thread.dead:
                thread.throw()

    def seen(self) -> Hashable:
        """Return all that decides what can happen from now on."""
        known: dict[int, int] = {}
        shared = [_seen(value, known) for one in self.shared for _, value in sorted(vars(one).items())]
        for name, thread in self._threads:
            shared += name, *_frames(thread, known)
        return tuple(shared)


class _State:
    def __init__(self, world: World, schedule: tuple[int, ...]) -> None:
        self.schedule = schedule
        self.ready = world.ready()
        self.has_ended = world.has_ended()
        self._seen = hash(world.seen())  # what was seen would take gigabytes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _State) and self._seen == other._seen

    def __hash__(self) -> int:
        return self._seen


def explore_threads(make: Callable[[], World]) -> Explored:
    """Explore all that can happen to the threads of a world. "stuck": all of them wait, before the world has ended."""

    def at(schedule: tuple[int, ...]) -> tuple[str, _State]:
        world, name = make(), ""
        for number in schedule:
            name = world.step(number)
        state = _State(world, schedule)
        world.close()
        return name, state

    def moves(state: _State) -> Iterator[Move[_State]]:
        for number in state.ready:
            name, to = at((*state.schedule, number))
            yield Move(name, to, None if to.ready or to.has_ended else "stuck")

    return explore(at(())[1], moves, lambda state: state.has_ended)


def _frames(thread: greenlet, known: dict[int, int]) -> Iterator[Hashable]:
    if thread.dead:
        yield "ended"
    frame = thread.gr_frame
    while frame is not None:
        yield id(frame.f_code), frame.f_lasti
        for value in frame.f_locals.values():
            yield _seen(value, known)
        frame = frame.f_back


def _seen(value: Any, known: dict[int, int]) -> Hashable:
    """Return what can be compared: the identity of a token, numbers, whether a time is infinite, otherwise nothing."""
    kind = type(value)
    if kind is object:
        return "token", known.setdefault(id(value), len(known))
    if kind is float:
        return bool(value == math.inf)
    return value if isinstance(value, int) else None
