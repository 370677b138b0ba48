"""Trains a student while it rounds as the device does (quantization-aware training)."""
