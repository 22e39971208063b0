"""The runs of the last hour, day or week, or an even sample of them, so that a page stays cheap."""

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
    """Every `step`th run id, from `first` to `last`."""

    first: int
    last: int
    step: int

    @property
    def is_whole(self) -> bool:
        """True if the sample contains all runs."""
        return self.step == 1

    @property
    def size(self) -> int:
        """The number of ids."""
        return (self.last - self.first) // self.step

    def runs(self, jobs: Jobs[Any], columns: Sequence[Any], *conditions: Any) -> tuple[Any, Any]:
        """Return a FROM clause with the runs of the sample that meet the conditions, and their columns in it."""
        if self.is_whole:
            runs: Any = select(*columns).where(*conditions).subquery("ended")
            return runs, runs.c
        series = func.generate_series(self.first, self.last, self.step)
        ids = series.table_valued(column("id", BigInteger), name="picked").render_derived()
        # LIMIT makes the planner look up each row by primary key
        runs = select(*columns).where(jobs.Run.id == ids.c.id, *conditions).limit(1).lateral("ended")
        return ids.join(runs, true()), runs.c


def sample_since(session: Session, jobs: Jobs[Any], start: datetime, size: int) -> Sample:
    """Return a sample of the runs since `start`: all if they are fewer than twice `size`, else about `size`."""
    run: Any = jobs.Run
    first, _ = where_since(session, jobs, run.id, run.started_at, start)
    last = session.scalar(select(func.max(run.id))) or 0
    return Sample(first, last, 1 if last - first < 2 * size else (last - first) // size)
