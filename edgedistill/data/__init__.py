"""Recordings in and out: NWB sessions, the simulator, bins and windows."""
