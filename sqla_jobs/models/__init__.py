"""The mapped classes: their columns, constraints and mapping on an application's metadata."""
