"""The queries behind the dashboard's pages."""
