"""Subscriptions within this process to notifications about new jobs."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from functools import cache

SCHEDULES = "=schedules"
"""The payload for a changed schedule. No queue's name contains "="."""
LIMITS = "=limits"
"""The payload when jobs that wait for limits may start in any queue. For one queue, it follows the queue's name."""
BLOCKED = "=blocked"
"""The payload for newly blocked jobs whose wait may already be over, because the jobs before them may have ended."""
Subscriber = Callable[[str], object]
_subscribers: dict[str, list[Subscriber]] = {}


def subscribe(channel: str, subscriber: Subscriber) -> None:
    """Call `subscriber`, in the committing thread, for each queue with new jobs."""
    _forget_after_forks()
    _subscribers.setdefault(channel, []).append(subscriber)


def unsubscribe(channel: str, subscriber: Subscriber) -> None:
    """Call `subscriber` no more. Do nothing if it was not subscribed."""
    with suppress(KeyError, ValueError):
        _subscribers[channel].remove(subscriber)


def notify_here(channel: str, what: str) -> None:
    """Notify the subscribers in this process."""
    for subscriber in list(_subscribers.get(channel, ())):
        subscriber(what)


@cache
def _forget_after_forks() -> None:
    """Let forked children forget all subscribers, since they do not run the subscribers' threads."""
    os.register_at_fork(after_in_child=_subscribers.clear)
