"""What workers, clocks and supervisors share."""
