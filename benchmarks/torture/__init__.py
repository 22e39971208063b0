"""Steady load, faults by a seeded plan, and a count of the effects afterwards: `python -m benchmarks.torture`."""
