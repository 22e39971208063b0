"""The mapped classes: their columns, their constraints, and their mapping on an application's metadata."""
