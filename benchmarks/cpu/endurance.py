"""Checks that the C engine stays exact for a million steps beside the oracle, and steady for ten million alone.

Students of the presets have random weights. Bins are noise with artefacts, silence and saturation in between.

  exact   compares every integer tensor, every output and the state with the oracle's, bit for bit, for each variant
          that this CPU runs, with and without tracing
  alone   runs the fastest variant and counts outputs that are not finite. Afterwards, over as many bins as the student
          remembers, a fresh decoder must give the same bits (no drift), and `ed_reset` must bring back the state and
          the outputs of the start
  frames  does the same through the front end, a frame at a time. Filters remember longer than a test lasts, so only
          what `ed_reset` leaves is compared

    python -m benchmarks.cpu.endurance [--exact 1000000] [--alone 10000000] [--frames 10000000] [--preset edge]
"""

from __future__ import annotations

import ctypes
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.cpu.c_models import C, Decoder, build, draw_model, list_variants, make_front_end
from benchmarks.harness import RESULTS, describe_conditions, option_parser, say, write_result
from edgedistill.bundle.build_record import ABI_VERSION
from edgedistill.config import StudentShape, load_preset
from edgedistill.numerics import Int8Model, Oracle
from edgedistill.numerics.tensors import four_bit_parts
from edgedistill.runtime.c_state import state_dtype

CHANNELS, OUTPUTS = 96, 2
BLOCK = 4096  # steps compared at a time
PIECE = 250_000  # steps in one call to C
ROWS = 100_003  # of inputs, which are used again; a prime, so that they never fall in step with a ring

Floats = npt.NDArray[np.float32]


def main() -> None:
    parser = option_parser(__doc__, RESULTS / "cpu")
    parser.add_argument("--preset", default="edge")
    parser.add_argument("--exact", type=int, default=1_000_000, help="steps beside the oracle")
    parser.add_argument("--alone", type=int, default=10_000_000, help="steps without it")
    parser.add_argument("--frames", type=int, default=10_000_000, help="frames through the front end")
    parser.add_argument(
        "--four-bits", action="store_true", help="weights of the embedding and the layers have four bits"
    )
    options = parser.parse_args()
    shape = load_preset(options.preset).student.shape(CHANNELS, OUTPUTS)
    model = draw_model(shape, four=four_bit_parts(shape) if options.four_bits else ())
    result: dict[str, Any] = {**describe_conditions("benchmarks.cpu.endurance"), "preset": options.preset}
    result["weights"] = 4 if options.four_bits else 8
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.exact:
            result["exact"] = check_exact(folder / "exact", model, options.exact)
        if options.alone or options.frames:
            runner = Runner(folder / "alone", model, list_variants()[0])
            result["alone"] = check_alone(runner, options.alone) if options.alone else None
            result["frames"] = check_front_end(runner, options.frames) if options.frames else None
    result["ok"] = all(part["ok"] for name in ("exact", "alone", "frames") if (part := result.get(name)))
    write_result(options.out, f"endurance-{options.preset}{'-four-bits' if options.four_bits else ''}", result)
    print(json.dumps({name: result[name] for name in ("exact", "alone", "frames", "ok") if name in result}, indent=1))
    sys.exit(0 if result["ok"] else 1)


class Runner:
    """A decoder with the loops of endurance.c."""

    def __init__(self, folder: Path, model: Int8Model, ops: str, traced: bool = False) -> None:
        folder.mkdir(parents=True)
        built = build(folder, model, ops, extra=[C / "endurance.c"], options=("-DED_TRACE",) if traced else ())
        self.decoder, self.shape = Decoder(built), model.shape
        self.c = self.decoder.call
        for name in ("run_alone", "push_alone", "trace_left"):
            getattr(self.c, name).restype = ctypes.c_size_t

    def run(self, bins: Floats) -> Floats:
        """Steps over bins (n, C) and returns the kinematics (n, K)."""
        found = np.full((len(bins), self.shape.outputs), np.nan, np.float32)
        self.decoder.check(self.c.run(self._handle, _at(bins), _n(len(bins)), _at(found)))
        return found

    def run_traced(self, bins: Floats, width: int) -> tuple[Floats, npt.NDArray[np.int8]]:
        """Returns the kinematics, and all integers (n, width) in the order in which a step makes them."""
        log = np.zeros((len(bins), width), np.int8)
        self.c.trace_to(_at(log), _n(log.nbytes))
        found = self.run(bins)
        if self.c.trace_left():
            raise SystemExit(f"the engine traced {self.c.trace_left()} bytes less than the oracle")
        return found, log

    def count_wild(self, loop: str, rows: Floats, count: int) -> int:
        """Makes `count` calls over `rows`, and counts the outputs that were not finite."""
        found = 0
        for first in range(0, count, PIECE):
            n = min(PIECE, count - first)
            found += getattr(self.c, loop)(self._handle, _at(rows), _n(len(rows)), _n(first), _n(n))
            if (first // PIECE) % 8 == 0:
                say(f"{loop}: {first + n:,} of {count:,}")
        return found

    @property
    def _handle(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.decoder.handle)


def _at(array: npt.NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _n(value: int) -> ctypes.c_size_t:
    return ctypes.c_size_t(value)


# ---------------------------------------------------------------- inputs


def make_eventful_bins(rng: np.random.Generator, count: int, channels: int) -> Floats:
    """Returns z-scored noise with artefacts, masked channels, silence and values that saturate."""
    bins = rng.standard_normal((count, channels)).astype(np.float32)
    for scale in (0.0, 1e-41, 0.01, 30.0, 1e6, 3e37):
        at = int(rng.integers(count))
        struck = slice(at, at + int(rng.integers(1, 40)))
        # Artefacts may overlap, and a bin must stay finite.
        bins[struck] = np.clip(bins[struck].astype(np.float64) * scale, -3e38, 3e38)
    bins[:, rng.integers(channels, size=3)] *= (rng.random((count, 1)) < 0.9).astype(np.float32)
    return bins


def make_eventful_frames(rng: np.random.Generator, count: int, channels: int) -> Floats:
    """Returns frames in microvolts with drift, lost samples, and dead and saturated stretches."""
    frames = (25 * rng.standard_normal((count, channels))).astype(np.float32)
    frames += np.float32(200) * np.sin(np.arange(count, dtype=np.float32) / 9000)[:, None]
    for value in (np.nan, np.inf, -np.inf, 3e38, 1e-41, 0.0, 8191.0):
        at = int(rng.integers(count))
        frames[at : at + int(rng.integers(1, 3000)), rng.integers(channels, size=5)] = value
    return frames


# ---------------------------------------------------------------- the checks


def check_exact(folder: Path, model: Int8Model, steps: int) -> dict[str, Any]:
    """Steps every variant beside the oracle until the first difference, or to the end."""
    runners = {f"{ops}, traced": Runner(folder / f"{ops}-traced", model, ops, True) for ops in list_variants()}
    runners |= {ops: Runner(folder / ops, model, ops) for ops in list_variants()}
    oracle, rng, began = Oracle(model), np.random.default_rng(5), time.monotonic()
    differences: list[str] = []
    done = 0
    while done < steps and not differences:
        bins = make_eventful_bins(rng, min(BLOCK, steps - done), model.shape.channels)
        trace = oracle.trace(bins)
        integers = order_integers(model.shape, trace)
        for name, runner in runners.items():
            differences += [
                f"{name}: {what} within steps {done} to {done + len(bins)}"
                for what in find_differences(runner, name, bins, trace, integers)
            ]
        states = {bytes(runner.decoder.export()[: count_state_bytes(model.shape)]) for runner in runners.values()}
        if states != {pack_state(model.shape, oracle, done + len(bins))}:
            differences.append(f"the exported state after step {done + len(bins)}")
        done += len(bins)
        if (done // BLOCK) % 10 == 0:
            say(f"exact: {done:,} of {steps:,}, {done / (time.monotonic() - began):,.0f} a second")
    figures = {"steps": done, "engines": list(runners), "integers_a_step": integers.shape[1]}
    return {**figures, "differences": differences, "seconds": round(time.monotonic() - began), "ok": not differences}


def find_differences(
    runner: Runner, name: str, bins: Floats, trace: dict[str, Any], integers: npt.NDArray[np.int8]
) -> list[str]:
    """Returns what differs from the oracle in any bit, over these bins."""
    log = integers
    if "traced" in name:
        kinematics, log = runner.run_traced(bins, integers.shape[1])
    else:
        kinematics = runner.run(bins)
    found = [] if kinematics.tobytes() == trace["kinematics"].tobytes() else ["kinematics"]
    return found + ([] if np.array_equal(log, integers) else ["integers"])


def order_integers(shape: StudentShape, trace: dict[str, Any]) -> npt.NDArray[np.int8]:
    """Returns all integers (T, n) of the oracle, in the order in which the engine makes them."""
    names = ["bin"]
    for i in range(shape.layers):
        names += [f"layers.{i}.{part}" for part in ("attn", "q", "k", "v", "context", "mlp", "hidden")]
    return np.concatenate([trace[name].reshape(len(trace["bin"]), -1) for name in (*names, "latent")], axis=1)


HEADER_BYTES = 80


def count_state_bytes(shape: StudentShape) -> int:
    """Returns the bytes of the header, the rings and the lagged bins."""
    rings = 2 * shape.layers * shape.heads * (shape.window - 1) * shape.head_dim
    return HEADER_BYTES + rings + shape.lag_rows * shape.channels


def pack_state(shape: StudentShape, oracle: Oracle, seen: int) -> bytes:
    """Returns the oracle's state as edgedistill.h lays it out, up to the front end. Sizes are those of the engine."""
    state = oracle.export_state()
    rings = [state[f"ring_{kind}_{i}"].tobytes() for i in range(shape.layers) for kind in "kv"]
    lags = state["lags"].tobytes() if shape.lag_rows else b""
    whole = state_dtype(shape, make_front_end(shape.channels))
    assert whole.fields is not None
    header = np.array(
        [
            (
                0x54534445,
                ABI_VERSION,
                whole.itemsize,
                whole.fields["shift_bins"][1] - whole.fields["frame"][1],
                seen,
                shape.channels,
                shape.d,
                shape.layers,
                shape.heads,
                shape.window,
                shape.lag_rows,
                state["pos"][0],
                state["live"][0],
                0,
                0,
            )
        ],
        np.dtype("<u4,<u4,<u8,<u8,<u8,<u4,<u4,<u4,<u4,<u4,<u4,<i4,<i4,<u8,<u8"),
    )
    return header.tobytes() + b"".join(rings) + lags


def check_alone(runner: Runner, steps: int) -> dict[str, Any]:
    """Runs millions of steps, and then compares what the student remembers with what a fresh one does."""
    shape, began = runner.shape, time.monotonic()
    bins = make_eventful_bins(np.random.default_rng(6), ROWS, shape.channels)
    fresh = runner.decoder.export()
    first = runner.run(bins[:BLOCK])
    runner.decoder.reset()
    wild = runner.count_wild("run_alone", bins, steps)
    memory = shape.receptive_field + shape.lag_rows
    last = make_eventful_bins(np.random.default_rng(7), memory + 500, shape.channels)
    old = runner.run(last)[memory:]
    state = read_rings(runner)
    runner.decoder.reset()
    young = runner.run(last)[memory:]
    figures = {"variant": list_variants()[0], "steps": steps, "wild": wild, "memory_bins": memory}
    checks = {
        "no_drift": old.tobytes() == young.tobytes()
        and sort_by_age(shape, state) == sort_by_age(shape, read_rings(runner)),
        "fresh_after_reset": is_fresh(runner, fresh, lambda: runner.run(bins[:BLOCK]), first),
    }
    return {**figures, **checks, "seconds": round(time.monotonic() - began), "ok": not wild and all(checks.values())}


def read_rings(runner: Runner) -> bytes:
    """Returns the student's part of the exported state."""
    return bytes(runner.decoder.export()[: count_state_bytes(runner.shape)])


def sort_by_age(shape: StudentShape, state: bytes) -> bytes:
    """Returns the part of a state that does not depend on when the stream began: rings by age, and lagged bins."""
    pos = int(np.frombuffer(state[56:60], "<i4")[0])
    size = 2 * shape.layers * shape.heads * (shape.window - 1) * shape.head_dim
    rings = np.frombuffer(state[HEADER_BYTES : HEADER_BYTES + size], np.int8)
    rings = rings.reshape(2 * shape.layers * shape.heads, shape.window - 1, shape.head_dim)
    return np.roll(rings, -pos, axis=1).tobytes() + state[HEADER_BYTES + size :]


def check_front_end(runner: Runner, frames: int) -> dict[str, Any]:
    """Runs millions of frames through the front end, and checks that a reset brings back the start."""
    began = time.monotonic()
    rows = make_eventful_frames(np.random.default_rng(8), ROWS, runner.shape.channels)
    runner.decoder.reset()
    fresh = runner.decoder.export()

    def start() -> npt.NDArray[np.uint8]:
        runner.count_wild("push_alone", rows[:BLOCK], BLOCK)
        return runner.decoder.export()

    first = start()
    runner.decoder.reset()
    wild = runner.count_wild("push_alone", rows, frames)
    checks = {"fresh_after_reset": is_fresh(runner, fresh, start, first)}
    figures = {"variant": list_variants()[0], "frames": frames, "wild": wild}
    return {**figures, **checks, "seconds": round(time.monotonic() - began), "ok": not wild and all(checks.values())}


def is_fresh(runner: Runner, fresh: Any, start: Callable[[], Any], first: Any) -> bool:
    """Resets, and returns whether the state is `fresh` again and `start` gives `first` again."""
    runner.decoder.reset()
    same = np.array_equal(runner.decoder.export(), fresh)
    return same and start().tobytes() == first.tobytes()


if __name__ == "__main__":
    main()
