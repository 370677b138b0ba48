"""Checks the rules that a step graph must obey so that TensorRT can import it."""
