"""Compiles the C engine of random students for tests, and drives it through ctypes."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.cpu.array_models import draw_deviation_model, draw_spatial_model
from edgedistill.compile.c.model_source import c_sources
from edgedistill.compile.model_facts import ModelFacts
from edgedistill.config import StudentShape
from edgedistill.frontend import FrontEndConfig, group_delay_ms, settling_bins
from edgedistill.numerics import Int8Model
from edgedistill.numerics.smoothing import SmoothingModel

from ..compiled_once import run_compiler

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "kernels"
STRICT = ("-std=c11", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wextra", "-Wconversion", "-Werror")
FLAGS = {
    "scalar": (),
    "avx2": ("-mavx2",),
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mprefer-vector-width=512"),
    "dsp": (),  # with its two instructions written out in C
    "helium": ("-isystem", str(ROOT / "emulation" / "helium")),  # with its intrinsics emulated
}
NEEDS = {"avx2": ("avx2",), "avx512": ("avx512bw", "avx512dq", "avx512vl", "avx512_vnni")}
HEADER = np.dtype(
    [("magic", "<u4"), ("abi", "<u4"), ("bytes", "<u8"), ("frontend_bytes", "<u8"), ("seen", "<u8")]
    + [(name, "<u4") for name in ("channels", "d", "layers", "heads", "window", "lag_rows")]
    + [("pos", "<i4"), ("live", "<i4"), ("smoothing_states", "<u4"), ("reserved", "<u4", (3,))]
)


BANDS = ((20.0, 60.0), (70.0, 200.0))
BANDED = StudentShape(channels=15, outputs=2, d=32, layers=2, heads=2, window=9, ff=48, taps=3, dilation=2, lags=3)


def runs_here(ops: str) -> bool:
    """Tells whether this CPU has the instructions of a variant."""
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return all(f" {name} " in cpu.replace("\n", " ") for name in NEEDS.get(ops, ()))


def compilers() -> list[str]:
    return [name for name in ("gcc", "clang") if shutil.which(name)]


def facts_of(
    model: Int8Model, config: FrontEndConfig, name: str = "test", smoothing: SmoothingModel | None = None
) -> ModelFacts:
    inputs, outputs = config.inputs, model.shape.outputs
    rng = np.random.default_rng(7)
    return ModelFacts(
        name=name,
        channel_ids=tuple(f"ch {i}" for i in range(config.channels)),
        output_names=tuple(f"vel \u00b5 {i}" for i in range(outputs)),
        output_units=("m/s",) * outputs,
        mean=tuple(rng.normal(0, 5, inputs)),
        std=tuple(rng.uniform(5, 50, inputs)),
        spatial=draw_spatial_model(config),
        deviation=draw_deviation_model(config.channels, outputs),
        warmup_bins=model.shape.receptive_field + settling_bins(config),
        group_delay_ms=group_delay_ms(config),
        manifest_sha256="0" * 64,
        weights_sha256="1" * 64,
        smoothing=smoothing,
    )


def front_end_of(model: Int8Model, rate: Fraction = Fraction(1000)) -> FrontEndConfig:
    """Returns a front end with short rules that leaves out the last channel of several, so every engine has one.

    A student of the shape BANDED has 5 channels with BANDS.
    """
    bands = BANDS if model.shape == BANDED else ()
    channels = model.shape.channels // (1 + len(bands))
    left_out = (channels - 1,) if channels > 1 else ()
    return FrontEndConfig(rate=rate, channels=channels, flat_s=0.1, recover_s=0.1, left_out=left_out, bands=bands)


def write_sources(
    folder: Path,
    model: Int8Model,
    ops: str,
    name: str = "test",
    smoothing: SmoothingModel | None = None,
    **config: Any,
) -> None:
    front_end = front_end_of(model, **config)
    for file, text in c_sources(model, front_end, facts_of(model, front_end, name, smoothing), ops).items():
        (folder / file).write_text(text)


def compile_c(folder: Path, output: str, sources: Sequence[Path | str], options: Sequence[str], compiler: str) -> Path:
    command = [compiler, *STRICT, *options, f"-I{KERNELS}/include", f"-I{KERNELS}/c", "-I.", *map(str, sources)]
    reads = [path for path in map(Path, sources) if path.is_absolute()]
    done = run_compiler([*command, "-o", output], folder / output, reads, cwd=folder)
    assert done.returncode == 0, done.stderr[-6000:]
    return folder / output


def build(
    folder: Path,
    model: Int8Model,
    ops: str = "scalar",
    options: Sequence[str] = (),
    compiler: str = "gcc",
    smoothing: SmoothingModel | None = None,
) -> Engine:
    """Compiles the engine of `model` with its trace, as a shared library."""
    write_sources(folder, model, ops, smoothing=smoothing)
    sources = [KERNELS / "c/ed_api.c", KERNELS / "c/ed_engine.c", Path(__file__).parent / "trace.c"]
    define = ("-DED_TRACE", '-DED_MODEL_HEADER="model_test.h"', "-shared", "-fPIC")
    return Engine(compile_c(folder, "engine.so", sources, (*FLAGS[ops], *options, *define), compiler), model)


class Info(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("abi_version", "channels", "inputs", "outputs", "latent")),
        *((name, ctypes.c_uint64) for name in ("rate_numerator", "rate_denominator")),
        *((name, ctypes.c_uint32) for name in ("bin_ms", "warmup_bins", "smoothing_states")),
        *((name, ctypes.c_double) for name in ("group_delay_ms", "smoothing_delay_ms")),
        *((name, ctypes.c_size_t) for name in ("state_bytes", "export_bytes")),
        *((name, ctypes.c_char_p) for name in ("name", "variant")),
        *((name, ctypes.POINTER(ctypes.c_char_p)) for name in ("channel_ids", "output_names", "output_units")),
        *((name, ctypes.c_char_p) for name in ("manifest_sha256", "weights_sha256")),
    )


class Output(ctypes.Structure):
    _fields_ = (
        ("bin", ctypes.c_uint64),
        ("end_frame", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("bad_channels", ctypes.c_uint32),
        ("kinematics", ctypes.c_float * 16),
        ("deviation", ctypes.c_float * 16),
    )


class Engine:
    """Holds a decoder in memory of its own; `c` has the public functions."""

    def __init__(self, library: Path, model: Int8Model, name: str = "test") -> None:
        self.c, self.shape = ctypes.CDLL(str(library)), model.shape
        self.c.ed_model_info.restype = self.c.ed_info_get.restype = ctypes.POINTER(Info)
        self.c.ed_state_bytes.restype = self.c.ed_outputs_for.restype = ctypes.c_size_t
        self.c.ed_strerror.restype = ctypes.c_char_p
        self.c.ed_reset.restype = None
        self.model = ctypes.byref(ctypes.c_char.in_dll(self.c, f"ed_model_{name}"))
        self.info = self.c.ed_model_info(self.model).contents
        self.memory = aligned(self.info.state_bytes)
        self.decoder = ctypes.c_void_p()
        assert self.init(self.memory) == 0

    def init(self, memory: npt.NDArray[np.uint8], decoder: Any = None) -> int:
        target = ctypes.byref(self.decoder) if decoder is None else decoder
        return int(self.c.ed_init(self.model, pointer(memory), ctypes.c_size_t(len(memory)), target))

    def reset(self) -> None:
        self.c.ed_reset(self.decoder)

    def run(self, bins: npt.NDArray[np.float32], traced: bool = False, states: bool = False) -> dict[str, Any]:
        """Returns kinematics, latents, and on request every integer tensor and the exported state after each bin."""
        bins, n = np.ascontiguousarray(bins, np.float32), len(bins)
        found: dict[str, Any] = {
            "kinematics": np.full((n, self.shape.outputs), np.nan, np.float32),
            "latents": np.full((n, self.shape.d), np.nan, np.float32),
        }
        exported = np.zeros((n if states else 0, self.info.export_bytes), np.uint8)
        shape = self.shape
        most = n * (shape.channels + shape.d + shape.layers * (6 * shape.d + shape.ff) + 32 * (2 + 7 * shape.layers))
        log = np.zeros(most if traced else 0, np.uint8)
        self.c.trace_to(pointer(log) if traced else None, ctypes.c_size_t(len(log)))
        arrays = (found["kinematics"], found["latents"], exported if states else None)
        pointers = [None if array is None else pointer(array) for array in arrays]
        assert self.c.run(self.decoder, pointer(bins), ctypes.c_size_t(n), *pointers) == 0
        found |= read_trace(log) if traced else {}
        self.c.trace_to(None, ctypes.c_size_t(0))
        return found | ({"states": exported} if states else {})

    def export(self) -> npt.NDArray[np.uint8]:
        state = np.zeros(self.info.export_bytes, np.uint8)
        assert self.c.ed_state_export(self.decoder, pointer(state), ctypes.c_size_t(len(state))) == 0
        return state

    def import_(self, state: npt.NDArray[np.uint8]) -> int:
        state = np.ascontiguousarray(state)
        return int(self.c.ed_state_import(self.decoder, pointer(state), ctypes.c_size_t(len(state))))

    def unpacked(self, state: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        """Returns an exported state, with the names of the oracle."""
        shape, at = self.shape, HEADER.itemsize
        header, found = state[:at].view(HEADER)[0], {}
        ring = (shape.heads, shape.window - 1, shape.head_dim)
        for i in range(shape.layers):
            for kind in "kv":
                found[f"ring_{kind}_{i}"] = state[at : at + int(np.prod(ring))].view(np.int8).reshape(ring)
                at += int(np.prod(ring))
        found |= {name: np.array([header[name]], np.int32) for name in ("pos", "live")}
        if shape.lag_rows:
            lags = state[at : at + shape.lag_rows * shape.channels].view(np.int8)
            found["lags"] = lags.reshape(shape.lag_rows, shape.channels)
        return found

    def packed(self, state: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.uint8]:
        """Returns the oracle's state as bytes to import, with a fresh front end."""
        self.reset()
        blank = self.export()
        header = blank[: HEADER.itemsize].view(HEADER)
        header["pos"], header["live"] = state["pos"][0], state["live"][0]
        rings = [state[f"ring_{kind}_{i}"] for i in range(self.shape.layers) for kind in "kv"]
        flat = np.concatenate([array.ravel() for array in (*rings, *([state["lags"]] if "lags" in state else []))])
        blank[HEADER.itemsize : HEADER.itemsize + len(flat)] = flat.view(np.uint8)
        return blank


def read_trace(log: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.int8]]:
    """Reads a trace: name -> (T, size), with the names of the oracle."""
    found: dict[str, list[npt.NDArray[np.int8]]] = {}
    at = 0
    while at + 32 <= len(log) and log[at]:
        name = log[at : at + 16].tobytes().rstrip(b"\0").decode()
        layer, size = int(log[at + 16 : at + 20].view("<i4")[0]), int(log[at + 24 : at + 32].view("<u8")[0])
        data = log[at + 32 : at + 32 + size].view(np.int8)
        found.setdefault(name if layer < 0 else f"layers.{layer}.{name}", []).append(data)
        at += 32 + size
    return {name: np.stack(rows) for name, rows in found.items()}


def aligned(size: int, to: int = 64) -> npt.NDArray[np.uint8]:
    """Returns aligned bytes that are not zero."""
    raw = np.full(size + to, 0xA5, np.uint8)
    return raw[-raw.ctypes.data % to :][:size]


def pointer(array: npt.NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
