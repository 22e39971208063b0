"""Programs to read and to run: `python examples/quickstart.py`, and `python -m examples.demo`."""
