"""The pages, and what their forms change."""
