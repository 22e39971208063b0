"""An application that takes all threads from the parent of its worker process, until a job returns them."""

from __future__ import annotations

import os
import resource
import time

from sqlalchemy.orm import DeclarativeBase

from sqla_jobs import Jobs


class Base(DeclarativeBase):
    pass


jobs = Jobs(Base)
if "STARVES_ITS_PARENT" in os.environ:
    _before = resource.prlimit(os.getppid(), resource.RLIMIT_NPROC)
    resource.prlimit(os.getppid(), resource.RLIMIT_NPROC, (1, _before[1]))


@jobs.task
def feed(after: float) -> None:
    time.sleep(after)
    resource.prlimit(os.getppid(), resource.RLIMIT_NPROC, _before)


@jobs.task
def nothing() -> None: ...
