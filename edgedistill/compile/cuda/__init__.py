"""Compiles the CUDA engine: a bundle and an NVIDIA GPU come in, a kernel and the library that runs it go out.

`module` is the way in. The other modules find the GPU and NVIDIA's compiler, and pack the model for the GPU's memory.
"""
