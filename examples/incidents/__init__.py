"""Eleven incidents with a real worker, and the commands that find and fix each of them.

`python -m examples.incidents` plays all incidents, and `python -m examples.incidents 3` plays the third. The page
docs/operating.md describes them.
"""
