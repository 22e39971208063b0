"""Changes that people make to jobs, queues, schedules and limits."""
