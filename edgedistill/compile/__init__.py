"""Engines for a device, from a bundle. Only the onnxruntime engine exists, which needs no compiling."""
