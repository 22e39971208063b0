"""Metrics for Prometheus. Needs the extra `prometheus`."""
