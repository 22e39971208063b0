"""The command line: `sqla-jobs`, `python -m sqla_jobs`, `python -m sqla_jobs.worker` and `flask jobs`.

Exit codes: 0 done; 1 something went wrong and is named on standard error; 2 the command line is wrong.
"""
