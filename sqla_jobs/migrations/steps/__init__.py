"""A module for each version: `upgrade(op, names)` from the one before, and `downgrade(op, names)` back to it.

They are written out and frozen, and read nothing from the models, which are those of the latest version. A step
keeps the rule of docs/migrations.md: code of the version before must run on what it leaves.
"""
