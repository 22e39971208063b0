"""The runs of the last hour, day or week; an even sample of them where they are many, so that a page stays cheap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, column, func, select, true
from sqlalchemy.orm import Session

from sqla_jobs.dashboard.data.listing import where_since
from sqla_jobs.jobs import Jobs


@dataclass(frozen=True)
class Sample:
    """Each `step`th id of a run from `first` to `last`."""

    first: int
    last: int
    step: int

    @property
    def is_whole(self) -> bool:
        """Whether it has all runs."""
        return self.step == 1

    @property
    def size(self) -> int:
        """How many ids these are."""
        return (self.last - self.first) // self.step

    def runs(self, jobs: Jobs[Any], columns: Sequence[Any], *conditions: Any) -> tuple[Any, Any]:
        """What to select from, and in it the columns of the runs of the sample that meet the conditions."""
        if self.is_whole:
            runs: Any = select(*columns).where(*conditions).subquery("ended")
            return runs, runs.c
        series = func.generate_series(self.first, self.last, self.step)
        ids = series.table_valued(column("id", BigInteger), name="picked").render_derived()
        # LIMIT keeps each look-up one in the primary key
        runs = select(*columns).where(jobs.Run.id == ids.c.id, *conditions).limit(1).lateral("ended")
        return ids.join(runs, true()), runs.c


def sample_since(session: Session, jobs: Jobs[Any], start: datetime, size: int) -> Sample:
    """Of the runs that started since then: all, where they are fewer than twice `size`; of more about `size`."""
    run: Any = jobs.Run
    first, _ = where_since(session, jobs, run.id, run.started_at, start)
    last = session.scalar(select(func.max(run.id))) or 0
    return Sample(first, last, 1 if last - first < 2 * size else (last - first) // size)
