"""The test kit: assertions about enqueued jobs, ways to run them, and factories, all in the test's own session."""

from sqla_jobs.testing.assertions import assert_enqueued, assert_not_enqueued, enqueued
from sqla_jobs.testing.calling import run_job
from sqla_jobs.testing.databases import Databases
from sqla_jobs.testing.drain import Drained, drain
from sqla_jobs.testing.factories import make_batch, make_job

__all__ = [
    "Databases",
    "Drained",
    "assert_enqueued",
    "assert_not_enqueued",
    "drain",
    "enqueued",
    "make_batch",
    "make_job",
    "run_job",
]
