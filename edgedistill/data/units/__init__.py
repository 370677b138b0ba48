"""Reads the spike times of a session, when each unit was observed, and how they fit the recording."""
