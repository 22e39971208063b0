"""`python -m sqla_jobs`."""

from sqla_jobs.cli.main import main

main(prog_name="python -m sqla_jobs")
