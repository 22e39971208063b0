"""The one live job of a key, held for the caller."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from sqla_jobs.models.types import LIVE, WAITING


def hold_unique(session: Session, job: type[Any], key: str, *, skip_locked: bool) -> tuple[int, bool] | None:
    """The live job of that key: its id, and whether nothing about that will change before our commit.

    `None` where no job is live. A waiting one is share-locked, so that it cannot start before the
    caller commits; `False` where somebody else holds its row at this moment. Without `skip_locked`
    that is waited for, so that a deadlock is found and `lock_timeout` holds.
    """
    found = session.execute(select(job.id, job.state).where(job.unique_key == key, job.state.in_(LIVE))).one_or_none()
    if found is None:
        return None
    if found.state == "running":
        return found.id, True
    free = session.scalar(
        select(job.id)
        .where(job.id == found.id, job.state.in_(WAITING))
        .with_for_update(read=True, skip_locked=skip_locked)
    )
    return found.id, free is not None
