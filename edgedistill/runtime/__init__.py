"""Runs a bundle on a device: raw frames come in, kinematics go out.

It imports numpy and scipy and nothing heavier. onnxruntime is looked for when an engine that needs it is opened.
"""

from edgedistill.runtime.decoder import ENGINES, Decoder, Flag, Output

__all__ = ["ENGINES", "Decoder", "Flag", "Output"]
