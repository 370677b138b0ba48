"""Running a bundle on a device: raw frames in, kinematics out.

Imports numpy, scipy and nothing heavier; onnxruntime is looked for when an engine is opened.
"""

from edgedistill.runtime.decoder import ENGINES, Decoder, Flag, Output

__all__ = ["ENGINES", "Decoder", "Flag", "Output"]
