"""Turns NWB sessions, recorded or simulated, into bins of 10 ms."""
