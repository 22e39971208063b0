"""The state of queues, processes and the database: `status`, `doctor` and `why`."""
