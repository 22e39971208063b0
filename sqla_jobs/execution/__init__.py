"""Running one attempt at a job."""
