"""Compares ten thousand steps of the CUDA kernel on the emulated GPU with the oracle, without a device.

The presets `nano` and `edge` with random weights go in, and `cuda-steps.json` comes out. It has the values that differ
(none may), the bytes that a step reads and the clocks that they take at least, registers and instructions by chip as
nvcc tells them, and a projection of the time. Emulation knows nothing of time, so every figure in clocks or
microseconds is an ESTIMATE, whose assumption stands beside it. With `--four-bits` all parts that can have them have
four-bit weights, which stay packed, the estimates for the same weights read as int8 stand beside (`as_int8`), and the
result is `cuda-steps-four-bits.json`.

    python -m benchmarks.gpu.cuda_emulated [--steps 10000] [--presets nano edge] [--four-bits] [--out FOLDER]

nvcc, and cuobjdump for instructions, are used where they are on the path.
"""

from __future__ import annotations

import ctypes
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cpu.c_models import draw_model, make_front_end, make_model_facts, write_files
from benchmarks.harness import RESULTS, describe_conditions, option_parser, write_result
from edgedistill.assets import asset_folder
from edgedistill.compile.cuda.model_source import cuda_sources
from edgedistill.compile.cuda.packing import WARP, StepForm, float_tables, packed_weights, threads_of
from edgedistill.config import StudentShape, load_preset
from edgedistill.numerics import Int8Model, Oracle
from edgedistill.numerics.tensors import four_bit_parts

KERNELS = Path(str(asset_folder("kernels")))
HARNESS = Path(__file__).parent / "cuda" / "cuda_emulated.cpp"
CHANNELS, OUTPUTS, CHUNK = 96, 2, 500
DEFINE = '-DED_MODEL_HEADER="model_student.h"'
EMULATION = KERNELS.parent / "emulation" / "cuda"
INCLUDES = ("-I.", *(f"-I{KERNELS / name}" for name in ("include", "c", "cuda")), f"-I{EMULATION}")
CXX = ("g++", "-std=c++17", "-O2", "-DED_EMULATED", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-shared")
NVCC = ("nvcc", "-std=c++17", "-cubin", "--fmad=false", "--prec-div=true", "--prec-sqrt=true", "--ftz=false")
CHIPS = ("sm_87", "sm_90", "sm_110")
SCHEDULERS = 4
STAGES = 7  # of a layer, each with a barrier at its end


@dataclass(frozen=True)
class Device:
    """One GPU that a step is projected for."""

    chip: str
    mhz: int
    port: int  # bytes a clock that one multiprocessor takes from L2: measured on an H100, assumed elsewhere


DEVICES = {
    "Orin Nano, 8 GB, MAXN SUPER": Device("sm_87", 1020, 64),
    "AGX Orin, 64 GB": Device("sm_87", 1300, 64),
    "Thor": Device("sm_110", 1575, 64),
    "H100": Device("sm_90", 1980, 117),
}


@dataclass(frozen=True)
class Measured:
    """One student on the H100, back to back, in kernels.json of benchmarks/results/nvidia-h100-80gb-hbm3."""

    us: float
    issue_clocks: int  # of the kernel that was measured, for sm_90
    layers: int

    @property
    def stages(self) -> int:
        """The stages of a step: those of the layers, the embedding and the read-out."""
        return count_stages(self.layers)


MEASURED = (Measured(7.82, 4354, layers=2), Measured(19.43, 16148, layers=4))  # `nano`, `edge`, commit 928e3a2
LAUNCH_US = 2.11  # from launch to launch of `ed_append`, which does next to nothing


def main() -> None:
    parser = option_parser(__doc__, RESULTS / "emulated")
    parser.add_argument("--steps", type=int, nargs="+", default=[10_000], help="one number, or one for each preset")
    parser.add_argument("--presets", nargs="+", default=["nano", "edge"])
    parser.add_argument("--four-bits", action="store_true", help="packed four-bit weights, beside the same as int8")
    options = parser.parse_args()
    four = bool(options.four_bits)
    steps = options.steps * len(options.presets) if len(options.steps) == 1 else options.steps
    result = {
        "what": "the CUDA step on the emulated GPU beside the oracle; no device was measured",
        **describe_conditions("benchmarks.gpu.cuda_emulated"),
        "compiler": " ".join(CXX),
        "students": {name: measure_student(name, n, four) for name, n in zip(options.presets, steps, strict=True)},
    }
    write_result(options.out, "cuda-steps-four-bits" if four else "cuda-steps", result)
    if any(student["values_that_differ"] for student in result["students"].values()):
        raise SystemExit("the emulated step differs from the oracle")


def measure_student(preset: str, steps: int, four: bool) -> dict[str, Any]:
    """Returns what was compared and counted for the student of one preset."""
    shape = StudentShape(CHANNELS, OUTPUTS, **asdict(load_preset(preset).student))
    model = draw_model(shape, four=four_bit_parts(shape) if four else ())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_step(folder, model, four)
        compared = compare_with_oracle(folder, model, steps)
        found = {"model": shape.to_json(), "threads": threads_of(shape)} | compared
        found |= estimate_step(folder, model, four)
        if four:
            write_step(folder, model, pack=False)
            found["as_int8"] = estimate_step(folder, model, pack=False)
    return found


def write_step(folder: Path, model: Int8Model, pack: bool) -> None:
    """Writes the sources of a model's step."""
    front_end = make_front_end(CHANNELS)
    facts = make_model_facts(model.shape, front_end, "student")
    sources = cuda_sources(model, front_end, facts, pack=pack)
    write_files(folder, {file: text.encode() for file, text in sources.items()})


def estimate_step(folder: Path, model: Int8Model, pack: bool) -> dict[str, Any]:
    """Returns the bytes of a step, what the compiler says of it for each chip, and the projected times."""
    shape, floor = model.shape, estimate_floor(model, pack)
    chips = {chip: compile_for_chip(folder, chip, shape) for chip in CHIPS} if shutil.which("nvcc") else None
    projection = None if chips is None else project_times(chips, floor, shape.layers)
    return {"floor": floor, "chips": chips, "projection": projection}


# ------------------------------------------------------------------------------------------- beside the oracle


def compare_with_oracle(folder: Path, model: Int8Model, steps: int) -> dict[str, Any]:
    """Compares the bits of kinematics and latents after every step, and of the state after every chunk of steps."""
    inputs = (KERNELS / "cuda" / "student_step.cu", HARNESS)
    sources = [word for source in inputs for word in ("-x", "c++", str(source))]
    subprocess.run([*CXX, "-w", DEFINE, *INCLUDES, *sources, "-o", "emulated.so"], cwd=folder, check=True)
    library, oracle, rng = ctypes.CDLL(str(folder / "emulated.so")), Oracle(model), np.random.default_rng(1)
    library.exchanged_bytes.restype = ctypes.c_size_t
    library.fresh()
    outs = np.zeros((CHUNK, model.shape.outputs + model.shape.d), np.float32)
    student, where = np.zeros(library.exchanged_bytes(), np.int8), np.zeros(2, np.int32)
    compared = differ = 0
    seconds = 0.0
    for at in range(0, steps, CHUNK):
        bins = rng.standard_normal((min(CHUNK, steps - at), model.shape.channels)).astype(np.float32)
        start = time.perf_counter()
        if library.steps(_at(bins), ctypes.c_size_t(len(bins)), _at(outs)):
            raise SystemExit("a launch failed")
        seconds += time.perf_counter() - start
        library.export_state(_at(student), _at(where))
        wanted = oracle.trace(bins, ())
        both = np.concatenate([wanted["kinematics"], wanted["latents"]], axis=1)
        got_state, state = np.concatenate([student, where.view(np.int8)]), _pack_exchanged(oracle)
        differ += int((outs[: len(bins)].view(np.uint32) != both.view(np.uint32)).sum() + (got_state != state).sum())
        compared += both.size + state.size
        print(f"{at + len(bins)} of {steps} steps, {differ} values differ", file=sys.stderr)
    return {
        "steps": steps,
        "values_compared": compared,
        "values_that_differ": differ,
        "state_sha256": hashlib.sha256(_pack_exchanged(oracle)).hexdigest(),
        "emulated_ms_a_step": round(1000 * seconds / steps, 3),
    }


def _pack_exchanged(oracle: Oracle) -> Any:
    """Returns the oracle's state as the bytes that `export_state` writes, followed by pos and live."""
    state = oracle.export_state()
    rings = [state[f"ring_{kind}_{i}"] for i in range(oracle.shape.layers) for kind in "kv"]
    lags = [state["lags"]] if "lags" in state else []
    parts = [array.ravel() for array in (*rings, *lags)] + [state[name].view(np.int8) for name in ("pos", "live")]
    return np.concatenate(parts)


def _at(array: Any) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


# ------------------------------------------------------------------------------------------- estimates


def estimate_floor(model: Int8Model, pack: bool) -> dict[str, Any]:
    """Estimates the bytes of a step, and the clocks they take through one multiprocessor's port to L2."""
    shape, form = model.shape, StepForm.of(model, pack=pack)
    parts = {
        "weights": len(packed_weights(model, form)),
        "tables": float_tables(model, form).nbytes,
        "rings": 2 * shape.layers * shape.window * shape.d,
    }
    whole = sum(parts.values())
    return {
        "what": "an ESTIMATE: all bytes from L2 at so many bytes a clock (117 measured on an H100, 64 assumed)",
        "bytes": parts,
        "clocks_at_bytes_a_clock": {port: round(whole / port) for port in (117, 64)},
    }


def count_stages(layers: int) -> int:
    """Returns the stages of a step: those of the layers, the embedding and the read-out."""
    return STAGES * layers + 2


def fit_clocks() -> tuple[float, float]:
    """Returns the clocks that an issued instruction and a stage took on the H100, from the two measured students."""
    mhz = DEVICES["H100"].mhz
    kinds = np.array([[one.issue_clocks, one.stages] for one in MEASURED], float)
    issued, stage = np.linalg.solve(kinds, [(one.us - LAUNCH_US) * mhz for one in MEASURED])
    return float(issued), float(stage)


def project_times(chips: dict[str, Any], floor: dict[str, Any], layers: int) -> dict[str, Any]:
    """Projects the time of a step on the device. It was never measured."""
    issued, stage = fit_clocks()
    found: dict[str, float | None] = {}
    for name, device in DEVICES.items():
        counted = chips[device.chip]["instructions"]
        least = floor["clocks_at_bytes_a_clock"][device.port]
        clocks = (
            None if counted is None else max(issued * counted["issue_clocks"] + stage * count_stages(layers), least)
        )
        found[f"{name}, {device.mhz} MHz"] = None if clocks is None else round(clocks / device.mhz + LAUNCH_US, 1)
    return {
        "what": "a PROJECTION, not measured: two unknowns that the two students measured on an H100 determine, with "
        "nothing left to check them; back to back on the device, launches included as on the H100",
        "clocks_an_instruction": round(issued, 2),
        "clocks_a_stage": round(stage),
        "us": found,
    }


def compile_for_chip(folder: Path, chip: str, shape: StudentShape) -> dict[str, Any]:
    """Compiles for a chip. Returns registers and spills by ptxas, and instructions where they can be disassembled."""
    source = str(KERNELS / "cuda" / "student_step.cu")
    command = [*NVCC, "-Xptxas", "-v", f"-arch={chip}", DEFINE, *INCLUDES, source, "-o", "step.cubin"]
    said = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stderr
    of_ours = r"properties for ed_student_step\s+(\d+) bytes stack frame, (\d+) bytes spill"
    found = re.search(of_ours + r".*?(\d+) registers.*?(\d+) bytes smem", said, re.S)
    assert found is not None, said
    names = ("stack_bytes", "spilled_bytes", "registers", "shared_bytes")
    return dict(zip(names, map(int, found.groups()), strict=True)) | count_instructions(folder, shape)


def count_instructions(folder: Path, shape: StudentShape) -> dict[str, Any]:
    """Counts the instructions of a warp in a step. The loop over layers counts as often as it runs.

    Slow paths of divisions, which lie after the exit, are left out.
    """
    if shutil.which("cuobjdump") is None:
        return {"instructions": None, "why_no_instructions": "cuobjdump is not on the path"}
    command = ["cuobjdump", "-sass", "-fun", "ed_student_step", "step.cubin"]
    said = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
    lines = re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(.*?);", said)
    code = [(int(at, 16), text) for at, text in lines]
    width = code[1][0] - code[0][0]
    backward = [(at, int(m[1], 16)) for at, text in code if (m := re.search(r"\bBRA\b.* (0x[0-9a-f]+)", text))]
    loop = max((at - to) // width + 1 for at, to in backward if to < at)
    end = next(at for at, text in code if re.fullmatch(r"\s*EXIT\s*", text)) // width
    a_step = end + (shape.layers - 1) * loop
    return {
        "instructions": {
            "of_a_layer": loop,
            "of_a_step": a_step,
            "issue_clocks": a_step * threads_of(shape) // WARP // SCHEDULERS,
            "what": "of one warp; issue_clocks is an ESTIMATE: one a clock and scheduler, nothing waited for",
        }
    }


if __name__ == "__main__":
    main()
