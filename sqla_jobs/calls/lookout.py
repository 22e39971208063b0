"""What looks for jobs that are due or waiting."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqla_jobs.calls.call import C_contra, Call
from sqla_jobs.calls.values import ALL, MANY, Among, Promotion, names


class Promote(Call[C_contra]):
    """Scheduled jobs that are due become queued; tells when the next one is, and how many workers serve `queues`."""

    def __call__(
        self,
        connection: C_contra,
        *,
        ahead: float = 0.0,
        limit: int = MANY,
        queues: Collection[str] = (),
        among: Among = ALL,
    ) -> Promotion:
        """Queue at most `limit` scheduled jobs that are due, or will be within `ahead` seconds.

        Counts the workers that serve any of `queues`, too.
        """
        return _promotion(self._rows(connection, _parameters(queues, among, ahead, limit)), limit)


class Poll(Call[C_contra]):
    """Promotes as `Promote` does, and tells whether anything was queued before: for one who asks and does not claim."""

    def __call__(
        self, connection: C_contra, queues: Sequence[str], tasks: Sequence[str], among: Among = ALL
    ) -> Promotion:
        values = _parameters(queues, among) | {"tasks": names(tuple(tasks))}
        return _promotion(self._rows(connection, values), MANY)


def _parameters(queues: Collection[str], among: Among, ahead: float = 0.0, limit: int = MANY) -> dict[str, Any]:
    return {"ahead": ahead, "limit": limit, "queues": names(tuple(queues)), **among.parameters()}


def _promotion(rows: Sequence[Any], limit: int) -> Promotion:
    ((count, due_in, *others),) = rows
    return Promotion(count, 0.0 if count == limit else due_in, *others)


class UnknownTo(Call[C_contra]):
    """How many of the first 10,000 jobs waiting in `queues` are of each task not in `tasks`."""

    def __call__(self, connection: C_contra, queues: Sequence[str], tasks: Sequence[str]) -> dict[str, int]:
        return dict(self._rows(connection, {"queues": list(queues), "tasks": list(tasks)}))
