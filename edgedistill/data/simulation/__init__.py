"""Simulates sessions of spikes, LFP and behavior, and writes them as NWB."""
