"""Pure decisions: no SQLAlchemy, no input or output."""
