"""What the library needs of a connection: engines, timeouts, notifications."""
