"""From NWB sessions to a streaming LFP decoder: distil, deploy, decode, measure."""

__version__ = "0.1.0"
