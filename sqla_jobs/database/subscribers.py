"""Subscriptions within this process to notifications about new jobs."""

from __future__ import annotations

from collections.abc import Callable

SCHEDULES = "=schedules"
"""The payload for a changed schedule. No queue's name contains "="."""
LIMITS = "=limits"
"""The payload when jobs that wait for limits may start in any queue. For one queue, it follows the queue's name."""
BLOCKED = "=blocked"
"""The payload for newly blocked jobs whose wait may already be over, because the jobs before them may have ended."""
Subscriber = Callable[[str], object]
_subscribers: dict[str, list[Subscriber]] = {}


def subscribe(channel: str, subscriber: Subscriber) -> Callable[[], None]:
    """Call `subscriber`, in the committing thread, for each queue with new jobs. Return the unsubscribe function."""
    _subscribers.setdefault(channel, []).append(subscriber)
    return lambda: _subscribers[channel].remove(subscriber)


def notify_here(channel: str, what: str) -> None:
    """Notify the subscribers in this process."""
    for subscriber in list(_subscribers.get(channel, ())):
        subscriber(what)


def forget_subscribers() -> None:
    """Forget all subscribers, since a forked child does not run their threads."""
    _subscribers.clear()
