"""`python -m benchmarks.torture`: steady load, faults by a seeded plan, and then a count of the effects."""
