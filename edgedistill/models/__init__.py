"""Defines the networks: the spike teacher, the LFP student, and the layers that both use."""
