"""Compiles the CUDA engine. A bundle and an NVIDIA GPU go in, and a kernel and the library that runs it come out.

Callers use `module`. The other modules find the GPU and NVIDIA's compiler, and pack the model for the GPU's memory.
"""
