"""Programs to read and to run: `python examples/quickstart.py`, `python -m examples.demo`, `-m examples.incidents`,
`-m examples.crawler`, `-m examples.import`, `-m examples.agent`.
"""
