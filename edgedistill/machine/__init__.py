"""This machine: its processor, its GPU, the board it may be, and a description that goes with every figure."""
