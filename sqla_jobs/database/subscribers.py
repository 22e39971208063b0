"""Who is told inside this process of what is enqueued."""

from __future__ import annotations

from collections.abc import Callable

SCHEDULES = "=schedules"
"""What is told instead of a queue's name, which holds no "=", where a schedule was changed."""
LIMITS = "=limits"
"""What is told after a queue's name, or alone for all queues, where jobs may start behind limits."""
FOLLOWERS = "=followers"
"""What is told instead of a queue's name where processes follow jobs: they want to be told of those that change."""
GREETING = "?"
"""What a worker that begins to listen tells those that follow jobs, so that they announce themselves."""


def followers_of(channel: str) -> str:
    """The channel on which those who follow jobs are told of them, beside that of the workers."""
    return f"{channel[:50]}=followers"


Subscriber = Callable[[str], object]
_subscribers: dict[str, list[Subscriber]] = {}


def subscribe(channel: str, subscriber: Subscriber) -> Callable[[], None]:
    """Be called in the committing thread for each queue that got jobs from this process. Returns the end of it."""
    _subscribers.setdefault(channel, []).append(subscriber)
    return lambda: _subscribers[channel].remove(subscriber)


def tell_here(channel: str, what: str) -> None:
    """Tell the subscribers of this process."""
    for subscriber in list(_subscribers.get(channel, ())):
        subscriber(what)


def forget_subscribers() -> None:
    """In a forked child they are not there."""
    _subscribers.clear()
