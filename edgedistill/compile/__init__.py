"""Compiles a bundle's engine for a device: a C library, a CUDA module or a TensorRT plan.

A bundle and a target come in. `build/<target>/` inside the bundle goes out, with the sources, what was compiled from
them and `build.json`. `engines` is the way in; `c/`, `cuda/` and `tensorrt/` each know one engine, and the modules
beside them hold what the engines share. The ONNX graphs of a bundle need no compiling.
"""
