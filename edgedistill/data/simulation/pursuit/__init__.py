"""Simulates an animal that follows a moving target, and the field that synaptic currents and distant inputs make."""
