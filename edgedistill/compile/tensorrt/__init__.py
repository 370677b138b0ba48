"""Compiles the TensorRT engine: a bundle comes in on a Jetson, a plan and the library that runs it go out.

`plan` is the way in. The other modules find the device and its versions, build the plans of all forms of the student,
and judge, time and choose them.
"""

from collections.abc import Callable

Report = Callable[[str, int, int], None]  # called with the phase of TensorRT's builder, the step and the steps
