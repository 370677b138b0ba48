"""Compiles a bundle's engine for a device, which is a C library, a CUDA module or a TensorRT plan.

A bundle and a target go in. The folder `build/<target>/` inside the bundle comes out, with the sources, the compiled
files and `build.json`. Callers use `engines`. `c/`, `cuda/` and `tensorrt/` each contain one engine, and the modules
beside them contain what the engines share. The ONNX graphs of a bundle need no compiling.
"""
