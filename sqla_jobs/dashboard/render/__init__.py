"""The texts and shapes that show values on pages. Pure functions."""
