"""Makes NVIDIA's parser and builder importable as `tensorrt`, on a machine without a GPU, for a process of its own.

The wheels that `make setup` fetched go in (`wheels`), and the environment variables of such a process come out. In it
`import tensorrt` gives the Python bindings of TensorRT 11.4 over TensorRT for RTX 1.7.1, which was built three days
before. The two differ in one place that we met: RTX has no `ITensor.allowed_formats`.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from benchmarks.tensorrt.wheels import BINDINGS, LEAN_10, LEAN_11, RTX, tensorrt_headers, unpack

FORWARDING = Path(__file__).with_name("forwarding.c")
ROOT = Path(__file__).parents[2]
LINKED = ("nvinfer", "nvonnxparser", "nvinfer_plugin")  # what the bindings are linked with
NUMBERED = "1.7.1"
KERNELS = ROOT / "kernels"
NO_KERNEL = """
extern "C" int ed_launch_attention_step(const int8_t *, const int8_t *, const int8_t *, const int8_t *, const int8_t *,
                                        const float *, const int32_t *, const int32_t *, float, float, float, int, int,
                                        int, int8_t *, void *) {
    return 1;
}
"""
PACKAGE = "from tensorrt_bindings import *\nfrom tensorrt_bindings import __version__\n"


def rtx_library() -> Path:
    """Returns TensorRT for RTX, whose folder holds its parser too."""
    return _rtx_folder() / f"libtensorrt_rtx.so.{NUMBERED}"


def lean_library(major: int) -> Path:
    """Returns the lean runtime of TensorRT 10.16 or 11.4."""
    wheel = {10: LEAN_10, 11: LEAN_11}[major]
    return unpack(wheel) / f"tensorrt_lean_libs/libnvinfer_lean.so.{major}"


def make_builder_environment(folder: Path) -> Mapping[str, str]:
    """Returns the variables with which `import tensorrt` gives NVIDIA's parser and builder. `folder` must be empty."""
    rtx = _rtx_folder()
    names = {"ED_TENSORRT": "libtensorrt_rtx.so", "ED_PARSER": "libtensorrt_onnxparser_rtx.so"}
    defined = [f'-D{macro}="{rtx / name}"' for macro, name in names.items()]
    for library in LINKED:
        soname = f"lib{library}.so.11"
        command = ["gcc", "-shared", "-fPIC", *defined, f"-Wl,-soname,{soname}", "-o", str(folder / soname)]
        subprocess.run([*command, str(FORWARDING)], check=True, capture_output=True)
    (folder / "tensorrt").mkdir()
    (folder / "tensorrt/__init__.py").write_text(PACKAGE)
    paths = (folder, unpack(BINDINGS["11.4.0.106"]), ROOT)
    return {
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join(map(str, (folder, rtx))),
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
    }


def compile_plugin(output: Path, changed: Mapping[str, str] | None = None) -> Path:
    """Compiles the plugin without its kernel, which the builder never launches.

    `changed` replaces parts of its source by others, to see what NVIDIA's code says about a fault.
    """
    source = (KERNELS / "tensorrt/plugin.cpp").read_text(encoding="utf-8")
    for old, new in (changed or {}).items():
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    written = output.with_suffix(".cpp")
    written.write_text(source + NO_KERNEL)
    include = [word for folder in (KERNELS / "cuda", *tensorrt_headers()) for word in ("-isystem", str(folder))]
    command = ["g++", "-std=c++17", "-O0", "-shared", "-fPIC", "-fvisibility=hidden", *include, str(written)]
    done = subprocess.run([*command, "-o", str(output)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return output


def _rtx_folder() -> Path:
    """Returns the folder of the libraries, where each is also found under its name without a number.

    Without those names the parser ends the process when it meets a plugin.
    """
    folder = unpack(RTX) / "onnxruntime_ep_nv_tensorrt_rtx"
    for library in folder.glob(f"lib*.so.{NUMBERED}"):
        link = folder / library.name.removesuffix(f".{NUMBERED}")
        try:
            link.symlink_to(library.name)
        except FileExistsError:
            continue
    return folder
