"""The command `python -m sqla_jobs.clock MODULE:ATTR`."""

from sqla_jobs.cli.running import clock

clock(prog_name="python -m sqla_jobs.clock")
