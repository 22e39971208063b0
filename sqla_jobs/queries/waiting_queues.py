"""The queues in which jobs are queued."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, func, select


def waiting_queues(job: Any) -> Select[str]:
    """Their names: from one to the next in the index, not job by job. `job` is the entity."""
    name = select(func.min(job.queue).label("name")).where(job.state == "queued").cte("names", recursive=True)
    following = (
        select(func.min(job.queue)).where(job.state == "queued", job.queue > name.c.name).correlate(name)
    ).scalar_subquery()
    name = name.union_all(select(following).where(name.c.name.is_not(None)))
    return select(name.c.name).where(name.c.name.is_not(None))
