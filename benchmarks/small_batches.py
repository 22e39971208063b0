"""The worker process of `benchmarks.work`, but with claims of at most 10 plain jobs, as many as behind limits."""

from benchmarks import work
from sqla_jobs.worker import backlog

PROGRAM = "benchmarks.small_batches"
BATCH = 10

if __name__ == "__main__":
    backlog.__dict__["_BATCH"] = BATCH
    work.main()
