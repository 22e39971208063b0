"""Following jobs until they end, from scripts, requests and event loops."""
