"""Eleven incidents with a real worker, and the commands that find and fix each of them.

`python -m examples.incidents` plays all of them, and `python -m examples.incidents 3` plays the third.
docs/operating.md describes them in prose.
"""
