"""An explorer of all interleavings of a model, breadth first: the traces that it finds are the shortest."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, NamedTuple, TypeVar

State = TypeVar("State", bound=Hashable)


class Move(NamedTuple, Generic[State]):
    """One step of somebody."""

    label: str
    to: State
    broken: str | None = None
    """The promise that it breaks."""
    is_fault: bool = False
    """What need not happen."""


class Explored(NamedTuple):
    """What was found."""

    states: int
    broken: str | None = None
    """The promise that is broken in the fewest steps."""
    steps: tuple[str, ...] = ()
    """Those that lead there."""


def explore(
    initial: State, moves: Callable[[State], Iterable[Move[State]]], has_ended: Callable[[State], bool]
) -> Explored:
    """All states that can be reached, up to the first broken promise; "stuck": no end can be reached without faults."""
    came: dict[State, tuple[State, str] | None] = {initial: None}
    back: dict[State, list[State]] = {}
    todo = deque([initial])

    def found(promise: str, state: State, *steps: str) -> Explored:
        while (before := came[state]) is not None:
            state, label = before
            steps = (label, *steps)
        return Explored(len(came), promise, steps)

    while todo:
        state = todo.popleft()
        for move in moves(state):
            if move.broken is not None:
                return found(move.broken, state, move.label)
            if move.to not in came:
                came[move.to] = state, move.label
                todo.append(move.to)
            if not move.is_fault:
                back.setdefault(move.to, []).append(state)
    good = {state for state in came if has_ended(state)}
    todo.extend(good)
    while todo:
        fresh = set(back.get(todo.popleft(), ())) - good
        good |= fresh
        todo.extend(fresh)
    stuck = next((state for state in came if state not in good), None)
    return Explored(len(came)) if stuck is None else found("stuck", stuck)
