"""Connections of the library: engines, sessions, timeouts and notifications."""
