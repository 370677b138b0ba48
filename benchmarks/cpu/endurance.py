"""Does the C engine stay exact and steady? A million steps beside the oracle, and ten million on its own.

Students of the presets with random weights; bins are noise with artefacts, silence and saturation in between.

  exact   every integer tensor, every output and the state, from a fresh start, of each variant this CPU runs and of
          the library as it ships, against the oracle, bit for bit
  alone   the fastest variant: every output finite; afterwards, over as many bins as the student remembers, a fresh
          decoder gives the same bits (no drift), and after `ed_reset` state and outputs are those of the start
  frames  the same through the front end, a frame at a time; filters remember longer than a test, so that only what
          `ed_reset` leaves is compared

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

from benchmarks.cpu.c_models import C, Decoder, build, front_end_of, random_model, variants
from benchmarks.harness import RESULTS, conditions, option_parser, say, write_result
from edgedistill.config import StudentShape, load_preset
from edgedistill.numerics import Int8Model, Oracle
from edgedistill.runtime.c_state import state_dtype

CHANNELS, OUTPUTS = 96, 2
BLOCK = 4096  # steps compared at a time
PIECE = 250_000  # steps of one call to C
ROWS = 100_003  # of inputs that are used again; prime, so that they never fall in step with a ring

Floats = npt.NDArray[np.float32]


def main() -> None:
    parser = option_parser(__doc__, RESULTS / "cpu")
    parser.add_argument("--preset", default="edge")
    parser.add_argument("--exact", type=int, default=1_000_000, help="steps beside the oracle")
    parser.add_argument("--alone", type=int, default=10_000_000, help="steps without it")
    parser.add_argument("--frames", type=int, default=10_000_000, help="frames through the front end")
    options = parser.parse_args()
    shape = load_preset(options.preset).student.shape(CHANNELS, OUTPUTS)
    model = random_model(shape)
    result: dict[str, Any] = {**conditions("benchmarks.cpu.endurance"), "preset": options.preset}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.exact:
            result["exact"] = exact(folder / "exact", model, options.exact)
        if options.alone or options.frames:
            runner = Runner(folder / "alone", model, variants()[0])
            result["alone"] = alone(runner, options.alone) if options.alone else None
            result["frames"] = through_the_front_end(runner, options.frames) if options.frames else None
    result["ok"] = all(part["ok"] for name in ("exact", "alone", "frames") if (part := result.get(name)))
    write_result(options.out, f"endurance-{options.preset}", result)
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
        """Kinematics (n, K)."""
        found = np.full((len(bins), self.shape.outputs), np.nan, np.float32)
        self.decoder.done(self.c.run(self._handle, _at(bins), _n(len(bins)), _at(found)))
        return found

    def traced(self, bins: Floats, width: int) -> tuple[Floats, npt.NDArray[np.int8]]:
        """Kinematics, and all integers (n, width) in the order a step makes them."""
        log = np.zeros((len(bins), width), np.int8)
        self.c.trace_to(_at(log), _n(log.nbytes))
        found = self.run(bins)
        if self.c.trace_left():
            raise SystemExit(f"the engine traced {self.c.trace_left()} bytes less than the oracle")
        return found, log

    def wild(self, loop: str, rows: Floats, count: int) -> int:
        """Outputs that were not finite in `count` calls over `rows`."""
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


def eventful_bins(rng: np.random.Generator, count: int, channels: int) -> Floats:
    """Z-scored noise with artefacts, masked channels, silence and values that saturate."""
    bins = rng.standard_normal((count, channels)).astype(np.float32)
    for scale in (0.0, 1e-41, 0.01, 30.0, 1e6, 3e37):
        at = int(rng.integers(count))
        struck = slice(at, at + int(rng.integers(1, 40)))
        bins[struck] = np.clip(bins[struck].astype(np.float64) * scale, -3e38, 3e38)  # two may meet; a bin is finite
    bins[:, rng.integers(channels, size=3)] *= (rng.random((count, 1)) < 0.9).astype(np.float32)
    return bins


def eventful_frames(rng: np.random.Generator, count: int, channels: int) -> Floats:
    """Microvolts with drift, lost samples, dead and saturated stretches."""
    frames = (25 * rng.standard_normal((count, channels))).astype(np.float32)
    frames += np.float32(200) * np.sin(np.arange(count, dtype=np.float32) / 9000)[:, None]
    for value in (np.nan, np.inf, -np.inf, 3e38, 1e-41, 0.0, 8191.0):
        at = int(rng.integers(count))
        frames[at : at + int(rng.integers(1, 3000)), rng.integers(channels, size=5)] = value
    return frames


# ---------------------------------------------------------------- the checks


def exact(folder: Path, model: Int8Model, steps: int) -> dict[str, Any]:
    """Steps until the first difference of any variant, or all of them."""
    runners = {f"{ops}, traced": Runner(folder / f"{ops}-traced", model, ops, True) for ops in variants()}
    runners |= {ops: Runner(folder / ops, model, ops) for ops in variants()}
    oracle, rng, began = Oracle(model), np.random.default_rng(5), time.monotonic()
    differences: list[str] = []
    done = 0
    while done < steps and not differences:
        bins = eventful_bins(rng, min(BLOCK, steps - done), model.shape.channels)
        trace = oracle.trace(bins)
        integers = in_order(model.shape, trace)
        for name, runner in runners.items():
            differences += [
                f"{name}: {what} within steps {done} to {done + len(bins)}"
                for what in differing(runner, name, bins, trace, integers)
            ]
        states = {bytes(runner.decoder.export()[: state_bytes(model.shape)]) for runner in runners.values()}
        if states != {packed(model.shape, oracle, done + len(bins))}:
            differences.append(f"the exported state after step {done + len(bins)}")
        done += len(bins)
        if (done // BLOCK) % 10 == 0:
            say(f"exact: {done:,} of {steps:,}, {done / (time.monotonic() - began):,.0f} a second")
    figures = {"steps": done, "engines": list(runners), "integers_a_step": integers.shape[1]}
    return {**figures, "differences": differences, "seconds": round(time.monotonic() - began), "ok": not differences}


def differing(
    runner: Runner, name: str, bins: Floats, trace: dict[str, Any], integers: npt.NDArray[np.int8]
) -> list[str]:
    """What of these bins differs in any bit."""
    log = integers
    if "traced" in name:
        kinematics, log = runner.traced(bins, integers.shape[1])
    else:
        kinematics = runner.run(bins)
    found = [] if kinematics.tobytes() == trace["kinematics"].tobytes() else ["kinematics"]
    return found + ([] if np.array_equal(log, integers) else ["integers"])


def in_order(shape: StudentShape, trace: dict[str, Any]) -> npt.NDArray[np.int8]:
    """All integers (T, n) of the oracle, as the engine makes them."""
    names = ["bin"]
    for i in range(shape.layers):
        names += [f"layers.{i}.{part}" for part in ("attn", "q", "k", "v", "context", "mlp", "hidden")]
    return np.concatenate([trace[name].reshape(len(trace["bin"]), -1) for name in (*names, "latent")], axis=1)


HEADER_BYTES = 80


def state_bytes(shape: StudentShape) -> int:
    """Of the header, the rings and the lagged bins."""
    rings = 2 * shape.layers * shape.heads * (shape.window - 1) * shape.head_dim
    return HEADER_BYTES + rings + shape.lag_rows * shape.channels


def packed(shape: StudentShape, oracle: Oracle, seen: int) -> bytes:
    """The oracle's state as edgedistill.h lays it out, without the front end; sizes are those of the engine."""
    state = oracle.export_state()
    rings = [state[f"ring_{kind}_{i}"].tobytes() for i in range(shape.layers) for kind in "kv"]
    lags = state["lags"].tobytes() if shape.lag_rows else b""
    front_end = front_end_bytes(shape)
    students = -(-(state_bytes(shape) - HEADER_BYTES) // 8) * 8
    header = np.array(
        [
            (
                0x54534445,
                1,
                HEADER_BYTES + students + front_end,
                front_end,
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


def front_end_bytes(shape: StudentShape) -> int:
    """Returns the bytes of the front end's state, which stands at the end of a decoder's."""
    whole = state_dtype(shape, front_end_of(shape.channels))
    return whole.itemsize - whole.fields["frame"][1] if whole.fields else 0


def alone(runner: Runner, steps: int) -> dict[str, Any]:
    """Millions of steps, then the memory of the student against that of a fresh one."""
    shape, began = runner.shape, time.monotonic()
    bins = eventful_bins(np.random.default_rng(6), ROWS, shape.channels)
    fresh = runner.decoder.export()
    first = runner.run(bins[:BLOCK])
    runner.decoder.reset()
    wild = runner.wild("run_alone", bins, steps)
    memory = shape.receptive_field + shape.lag_rows
    last = eventful_bins(np.random.default_rng(7), memory + 500, shape.channels)
    old = runner.run(last)[memory:]
    state = rings_of(runner)
    runner.decoder.reset()
    young = runner.run(last)[memory:]
    figures = {"variant": variants()[0], "steps": steps, "wild": wild, "memory_bins": memory}
    checks = {
        "no_drift": old.tobytes() == young.tobytes() and in_age(shape, state) == in_age(shape, rings_of(runner)),
        "fresh_after_reset": is_fresh(runner, fresh, lambda: runner.run(bins[:BLOCK]), first),
    }
    return {**figures, **checks, "seconds": round(time.monotonic() - began), "ok": not wild and all(checks.values())}


def rings_of(runner: Runner) -> bytes:
    return bytes(runner.decoder.export()[: state_bytes(runner.shape)])


def in_age(shape: StudentShape, state: bytes) -> bytes:
    """Rings by age instead of by slot, and the lagged bins: what does not depend on when the stream began."""
    pos = int(np.frombuffer(state[56:60], "<i4")[0])
    size = 2 * shape.layers * shape.heads * (shape.window - 1) * shape.head_dim
    rings = np.frombuffer(state[HEADER_BYTES : HEADER_BYTES + size], np.int8)
    rings = rings.reshape(2 * shape.layers * shape.heads, shape.window - 1, shape.head_dim)
    return np.roll(rings, -pos, axis=1).tobytes() + state[HEADER_BYTES + size :]


def through_the_front_end(runner: Runner, frames: int) -> dict[str, Any]:
    """Millions of frames."""
    began = time.monotonic()
    rows = eventful_frames(np.random.default_rng(8), ROWS, runner.shape.channels)
    runner.decoder.reset()
    fresh = runner.decoder.export()

    def start() -> npt.NDArray[np.uint8]:
        runner.wild("push_alone", rows[:BLOCK], BLOCK)
        return runner.decoder.export()

    first = start()
    runner.decoder.reset()
    wild = runner.wild("push_alone", rows, frames)
    checks = {"fresh_after_reset": is_fresh(runner, fresh, start, first)}
    figures = {"variant": variants()[0], "frames": frames, "wild": wild}
    return {**figures, **checks, "seconds": round(time.monotonic() - began), "ok": not wild and all(checks.values())}


def is_fresh(runner: Runner, fresh: Any, start: Callable[[], Any], first: Any) -> bool:
    """After a reset: the state of the beginning, and then the same again."""
    runner.decoder.reset()
    same = np.array_equal(runner.decoder.export(), fresh)
    return same and start().tobytes() == first.tobytes()


if __name__ == "__main__":
    main()
