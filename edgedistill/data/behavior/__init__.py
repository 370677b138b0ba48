"""Reads the behavior of a session: which series it is, its columns, its clock, and its value at the ends of bins."""
