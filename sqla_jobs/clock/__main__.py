"""The command `python -m sqla_jobs.clock MODULE:ATTR`, which is `worker --clock-only`."""

import sys

from sqla_jobs.cli.running import worker

worker([*sys.argv[1:], "--clock-only"], "python -m sqla_jobs.clock")
