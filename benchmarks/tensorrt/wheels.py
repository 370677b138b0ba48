"""Finds and unpacks the wheels of NVIDIA's libraries that `make setup` fetches. They are never installed.

The wheels lie in `tensorrt-wheels` of the environment that runs this, or in the folder that
`EDGEDISTILL_TENSORRT_WHEELS` names. What is unpacked lies there too, in `unpacked/`, and is made once.
"""

from __future__ import annotations

import os
import shutil
import sys
import zipfile
from pathlib import Path
from tempfile import mkdtemp

from edgedistill.errors import EngineError

PYTHON = f"cp{sys.version_info.major}{sys.version_info.minor}"
BINDINGS = {  # TensorRT's Python bindings: version -> wheel
    "10.3.0": f"tensorrt_cu12_bindings-10.3.0-{PYTHON}",
    "10.13.3.9": f"tensorrt_cu12_bindings-10.13.3.9-{PYTHON}",
    "10.16.1.11": f"tensorrt_cu12_bindings-10.16.1.11-{PYTHON}",
    "11.4.0.106": f"tensorrt_cu13_bindings-11.4.0.106-{PYTHON}",
}
RTX = "onnxruntime_ep_nv_tensorrt_rtx_cu13-0.5.0"  # TensorRT for RTX 1.7.1: parser, builder, runtime and registry
LEAN_10 = "tensorrt_lean_cu12_libs-10.16.1.11"  # runtime and registry of TensorRT 10.16
LEAN_11 = "tensorrt_lean_cu13_libs-11.4.0.106"  # the same of 11.4
HEADERS = "kernel_lens-2.0.1"  # NVIDIA's headers of TensorRT 10.14, under the Apache license
CUDA_HEADERS = ("nvidia_cuda_runtime-13.0.96", "nvidia_cuda_crt-13.0.88")


def wheels_folder() -> Path:
    """Returns the folder of the wheels, which may not exist."""
    return Path(os.environ.get("EDGEDISTILL_TENSORRT_WHEELS") or Path(sys.prefix) / "tensorrt-wheels")


def find_wheel(name: str) -> Path:
    """Returns the wheel whose file name starts with `name`. Raises EngineError where it was not fetched."""
    found = sorted(wheels_folder().glob(f"{name}-*.whl"))
    if not found:
        raise EngineError(
            "a wheel of NVIDIA's is missing",
            got=f"no {name}-*.whl in {wheels_folder()}",
            causes=(
                "`make setup` had no network",
                "no wheel of the bindings for this Python: they are fetched for 3.11",
            ),
            next_step="make setup",
        )
    return found[0]


def unpack(name: str) -> Path:
    """Returns the folder with the files of a wheel. Several processes may ask for it at once."""
    wheel = find_wheel(name)
    folder = wheel.parent / "unpacked" / wheel.stem
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        partial = Path(mkdtemp(dir=folder.parent))
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(partial)
        try:
            partial.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(partial)
    return folder


def tensorrt_headers() -> tuple[Path, ...]:
    """Returns the folders of TensorRT 10.14's headers and of the CUDA headers that they include."""
    return (
        unpack(HEADERS) / "kernel_lens/include/tensorrt",
        *(unpack(name) / "nvidia/cu13/include" for name in CUDA_HEADERS),
    )
