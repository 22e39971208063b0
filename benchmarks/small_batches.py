"""The worker process of `benchmarks.work`, but a claim takes at most 10 plain jobs, as a claim of limited jobs does."""

from benchmarks import work
from sqla_jobs.worker import backlog

PROGRAM = "benchmarks.small_batches"
BATCH = 10

if __name__ == "__main__":
    backlog.__dict__["_BATCH"] = BATCH
    work.main()
