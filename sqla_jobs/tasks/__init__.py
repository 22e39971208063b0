"""Tasks: their declaration, arguments, enqueueing, schedules and hooks."""
