"""Smooths the kinematics that a student decodes, with a Kalman filter in steady state.

A student's output is rougher than any hand moves. Raw kinematics go in bin by bin, smoothed ones come out. The state
holds the last kinematics, of one or two bins, about their mean. docs/numerics.md, "Smoothed output", is the definition,
and `kernels/c/ed_smoothing.h` is the same in C.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgedistill.errors import EngineError

Floats = npt.NDArray[np.float32]

ORDERS = (1, 2)  # bins of kinematics that a state holds
SMALLEST = np.float32(2.0**-100)  # a state below it becomes 0, so that silence does not end in denormal numbers
LARGEST = np.float32(2.0**80)  # of a raw value, a mean and a state, so that no sum can overflow
LARGEST_GAIN = np.float32(2.0**40)  # of `keep` and `gain`
BLOCK = 1024  # bins whose raw outputs are multiplied at once
DELAY_HZ = 1.0  # at which the delay is measured; a reach takes about a second


@dataclass(frozen=True, eq=False)
class SmoothingModel:
    """Holds a linear filter over K outputs, whose state has S = K or 2 K values."""

    keep: Floats  # (S, S) how a state follows from the one before
    gain: Floats  # (S, K) what a raw output adds to it
    raw_mean: Floats  # (K,) mean of the raw outputs
    mean: Floats  # (K,) mean of the kinematics

    @property
    def outputs(self) -> int:
        """Returns the number of outputs K."""
        return len(self.mean)

    def run(self, raw: Floats) -> Floats:
        """Returns the smoothed kinematics (T, K) of raw ones (T, K), beginning with a fresh state."""
        return OutputSmoother(self).run(raw)

    def find_fault(self, outputs: int | None = None) -> str | None:
        """Returns what makes this no filter of `outputs` values that an engine may run, or None for one that it may."""
        outputs, states = self.outputs if outputs is None else outputs, len(self.keep)
        expected = {"keep": (states, states), "gain": (states, outputs), "raw_mean": (outputs,), "mean": (outputs,)}
        for name, shape in expected.items():
            found = getattr(self, name)
            if found.dtype != np.float32 or found.shape != shape:
                return f"'{name}' is {found.dtype} {found.shape} and not float32 {shape}"
            limit = LARGEST_GAIN if name in ("keep", "gain") else LARGEST
            if not (np.abs(found) <= limit).all():
                return f"'{name}' holds a value that is not finite or above {limit:g}"
        if states not in [outputs * order for order in ORDERS]:
            return f"a state of {states} values does not belong to {outputs} outputs"
        radius = float(np.abs(np.linalg.eigvals(self.keep.astype(np.float64))).max(initial=0.0))
        if not radius < 1:
            return f"its state never fades: the spectral radius of 'keep' is {radius:g}"
        with np.errstate(all="ignore"):
            return None if np.isfinite(self.delay_ms(1)) else "its delay is not finite"

    def delay_ms(self, bin_ms: float) -> float:
        """Returns the group delay at DELAY_HZ from a raw output to the same smoothed one, of the slowest output.

        An output on which its raw value has no influence is left out. A filter that looks ahead has a delay below 0.
        """
        keep, gain, k = self.keep.astype(np.float64), self.gain.astype(np.float64), np.arange(self.outputs)
        angle = 2 * np.pi * DELAY_HZ * bin_ms / 1000  # radians a bin
        turned = keep * np.exp(-1j * angle)
        resolvent = np.linalg.inv(np.eye(len(keep)) - turned)
        response = (resolvent @ gain)[k, k]
        slope = (-resolvent @ (1j * turned) @ resolvent @ gain)[k, k]  # of the response, by the angle
        passes = np.abs(response) > 1e-9
        delays = -(slope / np.where(passes, response, 1)).imag
        return float(np.max(delays[passes])) * bin_ms if passes.any() else 0.0


class OutputSmoother:
    """Smooths one stream, bin by bin."""

    def __init__(self, model: SmoothingModel) -> None:
        """Starts with a state of zeros, which are the means."""
        states = len(model.keep)
        self._model = model
        self._keep = np.ascontiguousarray(model.keep.T)  # (S, S): row j is what value j adds to the next state
        self._state: Floats = np.zeros(states, np.float32)
        self._terms: Floats = np.empty((states + model.outputs, states), np.float32)  # of a sum, in their order

    def reset(self) -> None:
        """Starts again with a state of zeros."""
        self._state = np.zeros_like(self._state)

    def step(self, raw: Floats) -> Floats:
        """Returns the smoothed kinematics (K,) of raw ones (K,).

        Where a raw value is not finite or beyond LARGEST, the raw kinematics are returned and the state stays.
        """
        smoothed: Floats = self.run(raw[None])[0]
        return smoothed

    def run(self, raw: Floats) -> Floats:
        """Returns the smoothed kinematics (T, K) of raw ones (T, K), as steps give them."""
        smoothed, model = raw.copy(), self._model
        (usable,) = np.nonzero((np.abs(raw) <= LARGEST).all(1))
        with np.errstate(under="ignore"):
            for start in range(0, len(usable), BLOCK):
                rows = usable[start : start + BLOCK]
                driven = model.gain.T * (raw[rows] - model.raw_mean)[:, :, None]  # (rows, K, S)
                states = np.stack([self._advance(terms) for terms in driven])
                smoothed[rows] = states[:, : model.outputs] + model.mean
        return smoothed

    def _advance(self, driven: Floats) -> Floats:
        """Returns the next state (S,), to which the raw outputs of a bin add `driven` (K, S)."""
        terms, states = self._terms, len(self._state)
        np.multiply(self._keep, self._state[:, None], out=terms[:states])
        terms[states:] = driven
        total = np.add.accumulate(terms)[-1]  # one after the other, as the definition adds them
        state: Floats = np.minimum(np.maximum(total, -LARGEST), LARGEST)
        state[np.abs(state) < SMALLEST] = 0
        self._state = state
        return state

    def export_state(self) -> dict[str, npt.NDArray[Any]]:
        """Returns `state` float32 (S,)."""
        return {"state": self._state.copy()}

    def import_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Continues from an exported state. Raises EngineError, with nothing changed, if it cannot be one."""
        self._state = require_smoothing_state(state, len(self._state)).copy()


def smoother_from_state(model: SmoothingModel | None, state: Mapping[str, npt.NDArray[Any]]) -> OutputSmoother | None:
    """Returns a stream of the filter that continues from an exported state, or a fresh one where that is empty.

    Returns None without a filter. Raises EngineError for a state that no stream of this filter comes to.
    """
    if model is None:
        if state:
            require_smoothing_state(state, 0)
        return None
    smoother = OutputSmoother(model)
    if state:
        smoother.import_state(state)
    return smoother


def require_smoothing_state(state: Mapping[str, npt.NDArray[Any]], states: int) -> Floats:
    """Returns the `state` (S,) of a filter with S = `states`. Raises EngineError where no stream comes to it."""
    found = state.get("state")
    if found is None or found.dtype != np.float32 or found.shape != (states,):
        raise EngineError(
            "state 'smoothing_state' does not fit this engine",
            got="nothing of that name" if found is None else f"{found.dtype} {found.shape}",
            expected=f"float32 ({states},)" if states else "none, because this bundle does not smooth its outputs",
            causes=("it was exported from a decoder of another bundle",),
        )
    size = np.abs(found)
    if not ((size <= LARGEST) & ((size >= SMALLEST) | (size == 0))).all():
        expected = f"magnitudes from {SMALLEST:g} to {LARGEST:g}, or 0"
        raise EngineError("state 'smoothing_state' is out of range", expected=expected)
    return found
