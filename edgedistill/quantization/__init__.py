"""From a trained student to the graph that is deployed."""
