"""Eleven incidents, played against a real worker, and the commands that find and mend each of them.

`python -m examples.incidents` plays all, `python -m examples.incidents 3` plays one. docs/operating.md is their prose.
"""
