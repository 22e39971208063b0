"""The worker process of `benchmarks.work`, with claims of plain jobs as small as those of jobs behind limits."""

from benchmarks import work
from sqla_jobs.worker import backlog

PROGRAM = "benchmarks.small_batches"
BATCH = 10

if __name__ == "__main__":
    backlog.__dict__["_BATCH"] = BATCH
    work.main()
