"""`python -m sqla_jobs`."""

from sqla_jobs.cli import main

main(prog_name="python -m sqla_jobs")
