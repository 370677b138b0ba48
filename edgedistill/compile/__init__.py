"""A bundle's engine for a device: in C, for a GPU, or as a TensorRT plan; `engines` is where to begin.

The graphs for onnxruntime lie in a bundle as they are and need no compiling.
"""
