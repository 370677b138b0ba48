"""Training: one loop for every stage, what goes into a step, and what comes out of a trained model."""
