"""The mapped classes: their columns, and how they get onto an application's metadata."""
