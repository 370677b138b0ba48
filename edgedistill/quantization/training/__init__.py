"""Quantization-aware training: a student that rounds as the device does while it learns."""
