"""The library's connections: engines, sessions, timeouts and notifications."""
