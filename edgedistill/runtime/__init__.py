"""Runs a bundle on a device. Raw frames go in, and kinematics come out.

This package imports numpy and scipy and nothing heavier. onnxruntime is imported when an engine that needs it is
opened.
"""

from edgedistill.runtime.decoder import ENGINES, Decoder, Flag, Output

__all__ = ["ENGINES", "Decoder", "Flag", "Output"]
