"""Simulates an animal that reaches for random targets, and the field that the spikes of its single units make."""
