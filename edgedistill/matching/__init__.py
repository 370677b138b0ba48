"""Compares a recording with the bundle that is to decode it, before it is decoded.

A bundle and an open recording go in. A `MatchedRecording` comes out. It reads the LFP with its channels in the order of
the bundle, and holds a warning for each difference that a person should know. A difference that no decoding can bridge
is an error. `channels` finds the order, `amplitude` compares the signal, `clock` compares the rate and the day, and
`recording` calls all of them.
"""

from edgedistill.matching.matched import MatchedRecording
from edgedistill.matching.recording import match_recording

__all__ = ["MatchedRecording", "match_recording"]
