"""The TensorRT engine: builds, checks and times the plans of a bundle's student on a Jetson."""
