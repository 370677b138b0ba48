"""Finds the range of every activation that the device holds in eight bits."""
