"""Turns a trained student into the integers and the graphs that are deployed."""
