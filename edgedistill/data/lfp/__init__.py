"""Reads the LFP of a session: which series it is, its clock and gaps, its electrodes, and its frames in microvolts."""
