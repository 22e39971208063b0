"""Subscriptions within this process to notifications about new jobs."""

from __future__ import annotations

from collections.abc import Callable

SCHEDULES = "=schedules"
"""The payload for a changed schedule. No queue's name contains "="."""
LIMITS = "=limits"
"""The suffix of a queue's name, or the whole payload for all queues, if jobs may start behind limits."""
FOLLOWERS = "=followers"
"""The payload by which processes that follow jobs ask workers to notify them of jobs that change."""
FOLLOWED_FOR = 60.0
"""Seconds for which that holds. It is sent again after a third of them."""
GREETING = "?"
"""The payload by which a worker that begins to listen asks processes that follow jobs to announce themselves."""


def followers_of(channel: str) -> str:
    """Return the channel of the processes that follow jobs, beside that of the workers."""
    return f"{channel[:50]}=followers"


Subscriber = Callable[[str], object]
_subscribers: dict[str, list[Subscriber]] = {}


def subscribe(channel: str, subscriber: Subscriber) -> Callable[[], None]:
    """Call `subscriber`, in the committing thread, for each queue with new jobs. Return the unsubscribe function."""
    _subscribers.setdefault(channel, []).append(subscriber)
    return lambda: _subscribers[channel].remove(subscriber)


def notify_here(channel: str, what: str) -> None:
    """Notify the subscribers of this process."""
    for subscriber in list(_subscribers.get(channel, ())):
        subscriber(what)


def forget_subscribers() -> None:
    """Forget all subscribers: a forked child does not run their threads."""
    _subscribers.clear()
