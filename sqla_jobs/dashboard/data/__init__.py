"""The queries of the pages."""
