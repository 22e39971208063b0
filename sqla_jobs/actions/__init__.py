"""The changes that people make to jobs, queues, schedules and limits."""
