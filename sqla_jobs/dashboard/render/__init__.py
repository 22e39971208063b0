"""Texts and shapes of values on pages. Pure."""
