"""Trains all models with one loop: prepares what goes into a step, and scores what comes out of a trained model."""
