"""What is declared and enqueued."""
