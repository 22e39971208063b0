"""A module for each version: `upgrade(op, names)` from the previous version, and `downgrade(op, names)` back to it.

The steps are frozen and do not read the models, which describe the latest version. A step follows the rule in
docs/migrations.md: the previous version's code must run on the tables that the step leaves behind.
"""
