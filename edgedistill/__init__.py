"""Turns NWB sessions into a streaming LFP decoder: distils, deploys, decodes and measures."""

__version__ = "0.2.0"
