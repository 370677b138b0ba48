"""Asks the NVIDIA driver for this machine's GPU, its chip and the version of the driver.

The driver library libcuda.so.1 is called through ctypes, as the compiled engine calls it from C. No Python package is
needed, and no context stays on the GPU. A cubin runs only on the chip that it was compiled for, so the chip must be
known before a cubin is compiled or loaded.
"""

from __future__ import annotations

import ctypes as c
from dataclasses import dataclass

from edgedistill.errors import DeviceError

LIBRARY = "libcuda.so.1"
NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


@dataclass(frozen=True)
class Gpu:
    """Describes the first GPU in the driver's order, which is the one that the engine runs on."""

    name: str
    chip: str  # "sm_90"
    driver: str  # the newest CUDA that the driver supports, in its own notation: "13000" is 13.0

    @property
    def cuda(self) -> str:
        """Returns the newest CUDA that the driver supports in the usual notation, such as "13.0"."""
        return f"{int(self.driver) // 1000}.{int(self.driver) % 1000 // 10}"


def find_gpu() -> Gpu:
    """Returns the GPU of this machine. Raises DeviceError if there is no driver, no GPU, or the driver refuses."""
    driver = _driver()
    _call(driver, "cuInit", 0)
    version, count, device = c.c_int(), c.c_int(), c.c_int()
    _call(driver, "cuDriverGetVersion", c.byref(version))
    _call(driver, "cuDeviceGetCount", c.byref(count))
    if not count.value:
        raise _no_gpu("the driver counts 0 GPUs")
    _call(driver, "cuDeviceGet", c.byref(device), 0)
    name = c.create_string_buffer(128)
    _call(driver, "cuDeviceGetName", name, len(name), device)
    capability = []
    for attribute in (MAJOR, MINOR):
        value = c.c_int()
        _call(driver, "cuDeviceGetAttribute", c.byref(value), attribute, device)
        capability.append(value.value)
    return Gpu(name.value.decode(errors="replace"), "sm_{}{}".format(*capability), str(version.value))


def _driver() -> c.CDLL:
    try:
        return c.CDLL(LIBRARY)
    except OSError as error:
        raise DeviceError(
            "there is no CUDA driver on this machine",
            got=error,
            expected=f"{LIBRARY}, which comes with the driver of an NVIDIA GPU",
            causes=("this machine has no NVIDIA GPU", "a container was started without its GPU: --gpus all"),
            next_step="edgedistill doctor",
        ) from error


def _call(driver: c.CDLL, name: str, *arguments: object) -> None:
    try:
        code = getattr(driver, name)(*arguments)
    except AttributeError as error:
        raise DeviceError(f"{LIBRARY} is not a CUDA driver", got=f"no function {name}") from error
    if code == NO_DEVICE:
        raise _no_gpu(f"{name} answers {code}")
    if code:
        raise DeviceError(
            "the CUDA driver does not start",
            got=f"{name} answers {code}{_meaning(driver, code)}",
            causes=("the driver was updated and the machine was not restarted", "the GPU has failed: see dmesg"),
            next_step="nvidia-smi",
        )


def _meaning(driver: c.CDLL, code: int) -> str:
    text = c.c_char_p()
    known = hasattr(driver, "cuGetErrorString") and driver.cuGetErrorString(code, c.byref(text)) == 0
    return f" ({text.value.decode(errors='replace')})" if known and text.value else ""


def _no_gpu(got: str) -> DeviceError:
    return DeviceError(
        "there is a CUDA driver on this machine, but no GPU",
        got=got,
        causes=("CUDA_VISIBLE_DEVICES hides it", "a container was started without its GPU: --gpus all"),
        next_step="nvidia-smi",
    )
