"""The state of queues, processes and the database: `status`, `doctor` and `why`."""

from sqla_jobs.monitoring.status import Status
from sqla_jobs.monitoring.status import read_status as status

__all__ = ["Status", "status"]
