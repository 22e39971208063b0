"""Code that workers, clocks and supervisors share."""
