"""What people do to jobs, queues and schedules."""
