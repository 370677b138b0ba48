"""Runs a decoder in a closed loop: a live source of frames comes in, outputs go to any number of sinks."""
