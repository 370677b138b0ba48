"""Compiles the TensorRT engine on a Jetson. A bundle goes in, and a plan and the library that runs it come out.

Callers use `plan`. The other modules find the device and its versions, build a plan for each form of the student, and
judge, time and choose among them.
"""

from collections.abc import Callable

Report = Callable[[str, int, int], None]  # phase of TensorRT's builder, step, number of steps
