"""A worker as `benchmarks.work`, of plain jobs, that claims as many at once as one behind limits does."""

from benchmarks import work
from sqla_jobs.worker import backlog

PROGRAM = "benchmarks.small_batches"
BATCH = 10

if __name__ == "__main__":
    backlog.__dict__["_BATCH"] = BATCH
    work.main()
