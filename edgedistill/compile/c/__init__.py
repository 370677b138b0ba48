"""Compiles the C engine. A bundle and a target go in, and a library that contains the model comes out.

Callers use `library`. The other modules write the C sources of a model and front end, find and run a compiler, and
measure how much memory a device needs for the firmware.
"""
