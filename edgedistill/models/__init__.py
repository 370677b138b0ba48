"""The networks: spike teacher, LFP student, and the layers they share."""
