"""The command line: `sqla-jobs`, `python -m sqla_jobs`, `python -m sqla_jobs.worker` and `flask jobs`.

Exit codes: 0 success; 1 an error, with a message on standard error; 2 an invalid command line.
"""
