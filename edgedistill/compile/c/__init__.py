"""Compiles the C engine: a bundle and a target come in, a library that holds the model goes out.

`library` is the way in. The other modules write the C sources of a model and front end, find and run a compiler, and
measure what firmware takes of a device's memory.
"""
