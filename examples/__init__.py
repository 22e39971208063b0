"""Programs to read and to run.

Start them with `python examples/quickstart.py`, or with `python -m` and one of `examples.demo`, `examples.incidents`,
`examples.crawler`, `examples.import` and `examples.agent`.
"""
