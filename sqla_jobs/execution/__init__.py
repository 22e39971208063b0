"""The execution of one attempt at a job."""
