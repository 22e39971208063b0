"""docs/reference.md, made from signatures and docstrings: `python -m tests.reference` renews it.

The sources are parsed and not imported, so that the page is the same with each version of Python and of what the
library requires. Only the types of columns and the options of the worker are those of the objects themselves.
"""
