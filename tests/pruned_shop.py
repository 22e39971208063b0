"""The shop, whose workers look for what is to be deleted every ten seconds."""

from sqla_jobs.worker import pruner
from tests.shop import jobs

__all__ = ["jobs"]

pruner.__dict__["_EVERY"] = 10.0
