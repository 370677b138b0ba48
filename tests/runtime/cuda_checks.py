"""Checks a bundle in a process on a machine with a GPU: `python -m tests.runtime.cuda_checks NAME,NAME PATH`.

The tests run it where the GPU is emulated.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from edgedistill.bundle import Bundle, open_bundle
from edgedistill.errors import EngineError
from edgedistill.runtime import Decoder, Flag

from .streams import frames_of, one_call, same, shift_soon, state_equal

CALLS = ("push", "step", "gap", "push", "int16", "float64", "normalization", "push", "reset", "step", "push")


def stream(bundle: Bundle, kind: str) -> None:
    """Checks that every call of a decoder gives the oracle's bits."""
    compiled, oracle, seen = Decoder(bundle, "cuda"), Decoder(bundle, "oracle"), set()
    for decoder in (compiled, oracle):
        shift_soon(decoder)
    for at, what in enumerate(CALLS):
        frames = frames_of(kind, (40, 3, 7, 333, 12)[at % 5], at)
        found, expected = (one_call(decoder, what, frames) for decoder in (compiled, oracle))
        assert same(found, expected), (at, what)
        seen |= {Flag.SHIFTED in output.flags for output in expected}
        assert compiled.latent.tobytes() == oracle.latent.tobytes(), (at, what)
    assert state_equal(compiled.export_state(), oracle.export_state())
    assert seen == {False, True}


def moved(bundle: Bundle, kind: str) -> None:
    """Checks that a stream can continue in another engine, before and after the ring wraps around."""
    frames = frames_of(kind, 700)
    decoders = {engine: Decoder(bundle, engine) for engine in ("cuda", "oracle", "c")}
    for at, ours, theirs in ((13, "oracle", "cuda"), (333, "cuda", "c"), (333, "c", "cuda"), (13, "cuda", "oracle")):
        first, second, alone = decoders[ours], decoders[theirs], Decoder(bundle, "oracle")
        first.reset()
        for decoder in (first, alone):
            decoder.push(frames[:at])
            shift_soon(decoder)
            decoder.gap(2)
        second.push(frames_of(kind, 60, seed=7))
        second.import_state(first.export_state())
        assert state_equal(second.export_state(), first.export_state())
        assert same(second.push(frames[at : at + 120]), alone.push(frames[at : at + 120])), (ours, theirs, at)


def foreign(bundle: Bundle, kind: str) -> None:
    """Checks that a state of another bundle is refused and changes nothing."""
    decoder, twin = Decoder(bundle, "cuda"), Decoder(bundle, "cuda")
    state = decoder.export_state()
    ring = state["state_ring_k_0"]
    for wrong in (
        {**state, "state_pos": np.array([99], np.int32)},
        {**state, "state_ring_k_0": np.full_like(ring, -128)},
        {**state, "shift_power": state["shift_power"] * np.float32(-1)},
    ):
        try:
            decoder.import_state(wrong)
        except EngineError:
            continue
        raise AssertionError("the state was accepted")
    frames = frames_of(kind, 120)
    assert same(decoder.push(frames), twin.push(frames))


def failing(bundle: Bundle, kind: str) -> None:
    """Checks that a device that fails during a stream gives errors and no outputs until a new decoder is opened."""
    decoder = Decoder(bundle, "cuda")
    told = [refusal(decoder, frames_of(kind, 40)) for _ in range(12)]
    failed = next((at for at, text in enumerate(told) if text), None)
    assert failed, "no launch failed"
    assert all("CUDA engine" in text and "device" in text for text in told[failed:])
    del decoder
    stream(bundle, kind)


def refusal(decoder: Decoder, frames: np.ndarray) -> str:
    """Returns the error that these frames cause, or nothing if they are accepted."""
    try:
        decoder.push(frames)
    except EngineError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    path = Path(sys.argv[2])
    for check in sys.argv[1].split(","):
        globals()[check](open_bundle(path), path.stem)
