"""Rows of jobs behind gates and of their limits, as tests of statements need them."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, func, insert, select

from sqla_jobs.queries import processes
from tests.shop import jobs

Job, Limit, Start = jobs.Job, jobs._models.Limit, jobs._models.Start
ME = uuid.UUID(int=1)


def queued(connection: Connection, *gates: str, **values: Any) -> int:
    plain = {"task": "mark", "queue": "default", "args": {"n": 1}, "state": "queued"}
    given = {**plain, "gates": list(gates) or None, **values}
    given["ordered_by"] = next((gate for gate in gates if gate[0] == "!"), None)
    return connection.execute(insert(Job).values(given).returning(Job.id)).scalar_one()


def running(connection: Connection, *gates: str, **values: Any) -> int:
    run_id = connection.execute(jobs._models.run_ids.next_value()).scalar_one()
    lease = {"current_run_id": run_id, "process_id": ME, "started_at": func.now()}
    return queued(connection, *gates, state="running", **lease, **values)


def limit(connection: Connection, gate: str, **values: Any) -> None:
    connection.execute(insert(Limit).values({"gate": gate, "tasks": [], **values}))


def started(connection: Connection, gate: str, *ago: float, counts: Sequence[int] = ()) -> None:
    """One start so many seconds ago, for each."""
    total = connection.scalar(select(func.coalesce(func.max(Start.total), 0)).where(Start.gate == gate)) or 0
    for seconds, count in zip(ago, counts or [1] * len(ago), strict=True):
        total += count
        at = func.clock_timestamp() - timedelta(seconds=seconds)
        connection.execute(insert(Start).values(gate=gate, started_at=at, total=total, count=count))


def register(connection: Connection) -> uuid.UUID:
    return processes.register(connection, jobs._models, kind="worker", queues={}, lease=30)
