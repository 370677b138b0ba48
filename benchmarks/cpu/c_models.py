"""Builds the C engine of students with random weights, as `edgedistill compile` builds that of a bundle.

A shape and a variant of the inner loops go in, and a shared library comes out. Weights have the size that training
leaves them at. Speed does not depend on their values.
"""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.cpu.array_models import draw_deviation_model, draw_spatial_model
from edgedistill.compile.c.library import INCLUDES, SOURCES, kernel_sources
from edgedistill.compile.c.model_source import c_sources
from edgedistill.compile.c.toolchain import VARIANTS, Toolchain, find_toolchain
from edgedistill.compile.model_facts import ModelFacts
from edgedistill.config import StudentShape
from edgedistill.frontend import FrontEndConfig, group_delay_ms, settling_bins
from edgedistill.machine.processor import read_architecture, read_cpu_features
from edgedistill.numerics import Int8Model
from edgedistill.numerics.smoothing import SmoothingModel
from edgedistill.quantization.float_tensors import list_weight_shapes
from edgedistill.quantization.integers import quantize_student
from edgedistill.runtime.c_abi import ALIGN, load_library
from edgedistill.target import load_target

C = Path(__file__).parent / "c"
KILOHERTZ = Fraction(1000)


# ---------------------------------------------------------------- students


def draw_weights(shape: StudentShape, seed: int = 0) -> dict[str, npt.NDArray[np.float32]]:
    """Returns random float weights, by the names of `weight_shapes`."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, size in list_weight_shapes(shape).items():
        scale = 1 / np.sqrt(size[-1]) if len(size) == 2 else 0.1
        weights[name] = (("norm" in name) + scale * rng.standard_normal(size)).astype(np.float32)
    return weights


def draw_model(shape: StudentShape, seed: int = 0, four: Collection[str] = ()) -> Int8Model:
    """Returns a quantized student with random weights, of four bits in the parts `four`.

    Its ranges clip a little, as calibrated ones do.
    """
    rng = np.random.default_rng(seed + 1)
    ranges: dict[str, list[float]] = {"bin": [3.5], "latent": [2.8]}
    for i in range(shape.layers):
        ranges |= {f"layers.{i}.attn": [2.8], f"layers.{i}.mlp": [2.8], f"layers.{i}.hidden": [1.5]}
        ranges |= {f"layers.{i}.{part}": list(rng.uniform(1, 3, shape.heads)) for part in ("q", "k", "v", "context")}
    return Int8Model(shape, quantize_student(shape, draw_weights(shape, seed), ranges, (), four))


def make_front_end(channels: int, rate: Fraction = KILOHERTZ, **settings: Any) -> FrontEndConfig:
    """Returns the front end of an array with that many channels."""
    return FrontEndConfig(rate=rate, channels=channels, **settings)


def make_model_facts(
    shape: StudentShape, config: FrontEndConfig, name: str, smoothing: SmoothingModel | None = None
) -> ModelFacts:
    """Returns the facts that a compiled model holds besides its weights. Its outputs are raw without `smoothing`."""
    return ModelFacts(
        name=name,
        channel_ids=tuple(str(i) for i in range(config.channels)),
        output_names=tuple(f"vel_{i}" for i in range(shape.outputs)),
        output_units=("cm/s",) * shape.outputs,
        mean=(0.0,) * config.channels + (5.0,) * (config.inputs - config.channels),
        std=(20.0,) * config.channels + (1.0,) * (config.inputs - config.channels),
        spatial=draw_spatial_model(config),
        deviation=draw_deviation_model(config.channels, shape.outputs),
        warmup_bins=shape.receptive_field + settling_bins(config),
        group_delay_ms=group_delay_ms(config),
        manifest_sha256="0" * 64,
        weights_sha256="0" * 64,
        smoothing=smoothing,
    )


# ---------------------------------------------------------------- compiling


def list_variants() -> list[str]:
    """Returns the variants of the inner loops that this CPU runs, the fastest first."""
    own, features = read_architecture(), read_cpu_features()
    return [n for n, v in VARIANTS.items() if v.architecture in (None, own) and features.issuperset(v.requires)]


def find_host_toolchain(ops: str) -> Toolchain:
    """Returns the compiler and flags of target `host`, with another variant of the inner loops."""
    target = load_target("host")
    assert target.compiler is not None
    return find_toolchain(replace(target, compiler=replace(target.compiler, ops=ops)))


def write_sources(
    folder: Path,
    model: Int8Model,
    config: FrontEndConfig,
    ops: str,
    name: str,
    smoothing: SmoothingModel | None = None,
) -> None:
    """Writes `include/`, `c/` and `model/` into `folder`."""
    texts = c_sources(model, config, make_model_facts(model.shape, config, name, smoothing), ops)
    write_files(folder, {**kernel_sources(), **{f"model/{file}": text.encode() for file, text in texts.items()}})


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes files by their paths in `folder`, which is a temporary one."""
    for file, data in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(data)


@dataclass(frozen=True)
class Built:
    """A compiled model, not loaded yet."""

    library: Path
    name: str
    sizes: dict[str, int]  # bytes: code, constants


def build(
    folder: Path,
    model: Int8Model,
    ops: str,
    name: str = "subject",
    config: FrontEndConfig | None = None,
    extra: Sequence[Path] = (),
    options: Sequence[str] = (),
) -> Built:
    """Builds the shared library that `edgedistill compile` would make, with `extra` sources if there are any."""
    write_sources(folder, model, config or make_front_end(model.shape.channels), ops, name)
    return build_sources(folder, ops, name, extra, options)


def build_sources(folder: Path, ops: str, name: str, extra: Sequence[Path], options: Sequence[str]) -> Built:
    """Builds the shared library from sources that lie in `folder` already."""
    tools, objects = find_host_toolchain(ops), []
    for source in (*SOURCES, *map(str, extra)):
        objects.append(f"{Path(source).stem}.o")
        define = f'-DED_MODEL_HEADER="model_{name}.h"'
        tools.compile(folder, source, objects[-1], (*INCLUDES, define, *options))
    library = folder / f"lib{name}.so"
    tools.link(folder, objects, library.name)
    return Built(library, name, count_section_bytes(tools, folder, objects[: len(SOURCES)]))


def count_section_bytes(tools: Toolchain, folder: Path, objects: Sequence[str]) -> dict[str, int]:
    """Returns the bytes of code and of constants in object files."""
    found = {"code": 0, "constants": 0}
    for line in tools.run(folder, tools.tool("size"), "-A", *objects).splitlines():
        section, *numbers = line.split() or [""]
        kind = {".text": "code", ".rodat": "constants", ".data.": "constants"}.get(
            section[: 5 if section == ".text" else 6]
        )
        if kind and numbers:
            found[kind] += int(numbers[0])
    return found


# ---------------------------------------------------------------- running


class Decoder:
    """One decoder of a library, in memory of its own. `call` has the functions of the C interface."""

    def __init__(self, built: Built) -> None:
        self.call = load_library(built.library.name, built.library.read_bytes())
        self.model = ctypes.addressof(ctypes.c_char.in_dll(self.call, f"ed_model_{built.name}"))
        size = self.call.ed_state_bytes(self.model)
        room = np.zeros(size + ALIGN, np.uint8)
        self.memory = room[-room.ctypes.data % ALIGN :][:size]
        handle = ctypes.c_void_p()
        self.check(self.call.ed_init(self.model, self.memory.ctypes.data, len(self.memory), ctypes.byref(handle)))
        self.handle = handle.value
        self.info = self.call.ed_info_get(self.handle).contents

    def check(self, code: int) -> None:
        """Ends the program if a call returned an error."""
        if code:
            raise SystemExit(f"the C engine: {self.call.ed_strerror(code).decode()}")

    def reset(self) -> None:
        """Starts a fresh stream."""
        self.call.ed_reset(self.handle)

    def export(self) -> npt.NDArray[np.uint8]:
        """Returns the exported state."""
        room = np.zeros(self.info.export_bytes // 8, np.uint64)
        self.check(self.call.ed_state_export(self.handle, room.ctypes.data, room.nbytes))
        return room.view(np.uint8)
