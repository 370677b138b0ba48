"""Compiles CUDA kernels for the emulated GPU (emulation/cuda), and loads and launches them through ctypes.

A test that wants AddressSanitizer runs in a process of its own, with `sanitized()` as its environment. The arrays that
numpy hands to a kernel, and the shared memory of a block, then lie between zones that must not be touched.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..compiled_once import run_compiler

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "kernels"
EMULATION = ROOT / "emulation" / "cuda"
EMULATED = ("-std=c++17", "-DED_EMULATED", "-ffp-contract=off", "-fno-math-errno", "-fPIC")
STRICT = ("-Wall", "-Wextra", "-Wconversion", "-Wno-sign-conversion", "-Wno-unknown-pragmas", "-Werror")
SANITIZERS = ("-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
FOLDERS = (*(KERNELS / name for name in ("include", "c", "gpu", "cuda")), EMULATION)


def compilers() -> list[str]:
    return [name for name in ("g++", "clang++") if shutil.which(name)]


def compile_emulated(
    output: Path,
    sources: Sequence[Path | str],
    options: Sequence[str] = ("-O2",),
    folders: Sequence[Path] = (),
    compiler: str = "g++",
    sanitize: bool = False,
) -> Path:
    """Compiles .cu, .cpp and .c sources and objects to a shared library, or to an object if `output` ends in .o.

    A warning is an error. `folders` are searched for headers before those of kernels/.
    """
    kind = "-c" if output.suffix == ".o" else "-shared"
    flags = (*EMULATED, *STRICT, *(SANITIZERS if sanitize else ()), *options)
    include = [f"-I{folder}" for folder in (*folders, *FOLDERS)]
    inputs = [word for source in sources for word in _input(Path(source))]
    command = [compiler, *flags, *include, kind, *inputs, "-o", str(output)]
    done = run_compiler(command, output, [*map(Path, sources), *folders])
    assert done.returncode == 0, done.stderr[-6000:]
    return output


def _input(source: Path) -> tuple[str, ...]:
    return (str(source),) if source.suffix in (".o", ".a", ".so") else ("-x", "c++", str(source), "-x", "none")


def emulated_object(output: Path, source: Path, options: Sequence[str] = ("-O2",), sanitize: bool = False) -> Path:
    """Compiles one source to an object that others link."""
    return compile_emulated(output, [source], options, sanitize=sanitize)


def load(library: Path) -> ctypes.CDLL:
    found = ctypes.CDLL(str(library))
    found.ed_emulated_failure.restype = ctypes.c_char_p
    found.ed_emulated_reverse.restype = None
    return found


Count = int | tuple[int, ...]


def launch(library: ctypes.CDLL, kernel: str, grid: Count, block: Count, shared: int, *arguments: Any) -> int:
    """Launches a kernel and returns 0 or an error number of CUDA.

    Arrays are passed as pointers, None as a null pointer, other values as ctypes gives them.
    """
    values = [_argument(a) for a in arguments]
    pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
    sizes = [n for count in (grid, block) for n in (*(count if isinstance(count, tuple) else (count,)), 1, 1)[:3]]
    return int(getattr(library, f"{kernel}_emulated")(*sizes, ctypes.c_size_t(shared), pointers))


def _argument(value: Any) -> Any:
    if value is None or isinstance(value, np.ndarray):
        return pointer(value)
    if isinstance(value, int):
        return ctypes.c_int(value)
    return ctypes.c_float(value) if isinstance(value, float | np.floating) else value


def pointer(array: npt.NDArray[Any] | None) -> ctypes.c_void_p:
    assert array is None or array.flags.c_contiguous
    return ctypes.c_void_p(None if array is None else array.ctypes.data)


def failure(library: ctypes.CDLL) -> str:
    """Returns why the last launch failed, or an empty text if it did not."""
    return str(library.ed_emulated_failure().decode())


@contextmanager
def reversed_order(library: ctypes.CDLL, reversed_: bool = True) -> Iterator[None]:
    """Runs threads from the last to the first, with other bytes in shared memory before it is written."""
    library.ed_emulated_reverse(int(reversed_))
    yield
    library.ed_emulated_reverse(0)


def sanitized(compiler: str = "g++") -> dict[str, str] | None:
    """Returns the environment in which Python loads a library compiled with `sanitize`, or None without sanitizers."""
    found = [_runtime(compiler, name) for name in ("libasan.so", "libubsan.so")]
    if None in found:
        return None
    options = "detect_leaks=0:abort_on_error=0:exitcode=99"
    return {**os.environ, "LD_PRELOAD": " ".join(map(str, found)), "ASAN_OPTIONS": options, "PYTHONMALLOC": "malloc"}


def _runtime(compiler: str, name: str) -> Path | None:
    command = [compiler, f"-print-file-name={name}"]
    path = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    return path.resolve() if path.is_absolute() else None
