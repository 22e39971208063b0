"""Messages to the processes that follow jobs. They are sent only while such processes exist."""

from __future__ import annotations

import time
from collections.abc import Collection

from sqlalchemy import Engine

from sqla_jobs.database.notify import tell_followers
from sqla_jobs.database.subscribers import FOLLOWED_FOR, followers_of
from sqla_jobs.worker.attempts import Attempts


class Followers:
    """Sends the ids of jobs that were claimed, reported progress or ended here.

    It uses the notifier's connection. A message is sent after the commit, so its receiver reads the new state. Nothing
    is sent before `announced` is first called.
    """

    def __init__(self, attempts: Attempts, app: Engine, channel: str) -> None:
        self._attempts = attempts
        self._app = app
        self._channel = followers_of(channel)
        self._until = 0.0

    def announced(self) -> None:
        """Record that processes follow jobs. Reply to the first announcement.

        The reply makes those processes read all their jobs. They thus also see jobs that ended before.
        """
        is_news = time.monotonic() > self._until
        self._until = time.monotonic() + FOLLOWED_FOR
        self._attempts.changed = self._tell
        if is_news:
            tell_followers(self._app, self._channel, ())

    def _tell(self, job_ids: Collection[int]) -> None:
        if job_ids and time.monotonic() <= self._until:
            tell_followers(self._app, self._channel, job_ids)
