"""Programs to read and to run.

Start them with `python examples/quickstart.py`, or with `python -m` and one of `examples.demo`, `examples.crawler` and
`examples.agent`.
"""
