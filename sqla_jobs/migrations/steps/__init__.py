"""A module for each version: `upgrade(op, names)` from the version before, and `downgrade(op, names)` back to it.

The steps are frozen and do not read the models, which are those of the latest version. A step follows the rule of
docs/migrations.md: code of the version before must run on the tables that the step leaves.
"""
