"""The command `python -m sqla_jobs.worker MODULE:ATTR`."""

from sqla_jobs.cli.running import worker

worker(prog_name="python -m sqla_jobs.worker")
