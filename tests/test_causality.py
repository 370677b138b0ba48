"""No output up to time t depends on a raw sample after t, through front end, z-score, student and read-out."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgedistill.config import StudentSize
from edgedistill.frontend import FrontEnd, FrontEndConfig, zscore
from edgedistill.models.student import Student
from edgedistill.runtime import Decoder, Flag, Output
from edgedistill.training.evaluate import Readout, stack_lagged_bins, stream_latents

from .bundles import CHANNELS, write_test_bundle
from .runtime.streams import shift_soon

SIZE = StudentSize(d=8, layers=2, heads=2, window=20, ff=16, taps=3, dilation=2, lags=4)
RATE = Fraction(48828125, 50000)  # 976.5625 Hz: bins of unequal length
SPOILS = ("other", "nan", "infinite", "flat", "huge", "one sample")


def spoiled(frames: np.ndarray, cut: int, how: str) -> np.ndarray:
    """Returns the same frames up to `cut`, and something else after it."""
    other = frames.copy()
    after = other[cut:]
    if how == "one sample":
        after[:1, 0] += 1000
    else:
        noise = np.random.default_rng(9).normal(size=after.shape) * 60
        figures = {"nan": np.nan, "infinite": np.inf, "flat": 0.0, "huge": 1e30}
        after[:] = figures.get(how, noise)
    return other


def raw_frames(n: int, channels: int) -> np.ndarray:
    frames = 60 * np.random.default_rng(3).normal(size=(n, channels))
    frames[200:400, 0] = np.nan  # bad channels come and go before the cut too
    return frames.astype(np.float32)


class PythonPath:
    """Decodes as evaluation does: front end, z-scores, `Student.stream`, read-out with lagged bins."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.student = Student(SIZE, {"s": CHANNELS}, {"s": "a"}, 4, 2).eval()
        rng = np.random.default_rng(0)
        features = SIZE.d + (SIZE.lags + 1) * CHANNELS
        self.readout = Readout(rng.normal(size=(2, features)), rng.normal(size=2), 1.0, 0.0)
        self.config = FrontEndConfig(rate=RATE, channels=CHANNELS)

    def __call__(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns kinematics and the raw frame that completed each bin."""
        bins = FrontEnd(self.config).push(frames)
        values = zscore(bins.values, bins.bad, np.zeros(CHANNELS), np.full(CHANNELS, 30.0))
        latents = stream_latents(self.student, "s", torch.from_numpy(values))
        features = np.hstack([latents, stack_lagged_bins(values.astype(np.float64), SIZE.lags)])
        # row by row, because BLAS may add in another order in a matrix of another height
        return np.array([self.readout(row[None])[0] for row in features]), bins.end_frame


@pytest.fixture(scope="module")
def in_python() -> tuple[PythonPath, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Returns the path, frames, and what it decodes of them."""
    path, frames = PythonPath(), raw_frames(2000, CHANNELS)
    return path, frames, path(frames)


@settings(max_examples=12, deadline=None)
@given(cut=st.integers(500, 1900), how=st.sampled_from(SPOILS))
def test_pytorch_never_looks_ahead(
    in_python: tuple[PythonPath, np.ndarray, tuple[np.ndarray, np.ndarray]], cut: int, how: str
) -> None:
    path, frames, (mine, ends) = in_python
    its, _ = path(spoiled(frames, cut, how))
    past = ends < cut
    assert past.sum() > 45
    assert mine[past].tobytes() == its[past].tobytes()
    if (~past).any() and how == "other":
        assert not np.array_equal(mine[~past], its[~past])


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return Decoder(write_test_bundle(tmp_path_factory.mktemp("causality") / "test.edge"))


def facts(output: Output) -> tuple[object, ...]:
    return output.bin, output.end_frame, output.flags, output.bad_channels, output.kinematics.tobytes()


@pytest.fixture(scope="module")
def undisturbed(decoder: Decoder) -> list[Output]:
    """Returns what the decoder makes of the frames before anything in them was changed."""
    decoder.reset()
    shift_soon(decoder)
    return decoder.push(raw_frames(1500, CHANNELS))


@settings(max_examples=8, deadline=None)
@given(cut=st.integers(450, 1400), how=st.sampled_from(SPOILS), chunks=st.lists(st.integers(1, 400), max_size=8))
def test_the_decoder_never_looks_ahead(
    decoder: Decoder, undisturbed: list[Output], cut: int, how: str, chunks: list[int]
) -> None:
    """Flags and counts of bad channels are compared too, however the frames are cut. SHIFTED comes and goes."""
    mine = [facts(o) for o in undisturbed if o.end_frame < cut]
    decoder.reset()
    shift_soon(decoder)
    other, at, outputs = spoiled(raw_frames(1500, CHANNELS), cut, how), 0, []
    for size in [*chunks, len(other)]:
        outputs += decoder.push(other[at : at + size])
        at += size
    assert [facts(o) for o in outputs if o.end_frame < cut] == mine
    assert len(mine) > 150
    assert len({Flag.SHIFTED in flags for _, _, flags, *_ in mine}) == 2


def test_the_sample_at_t_itself_counts(decoder: Decoder) -> None:
    """Without this, the tests above would pass for a decoder that is merely late."""
    frames = raw_frames(1500, CHANNELS)
    decoder.reset()
    outputs = decoder.push(frames)
    last = outputs[400]
    decoder.reset()
    changed = decoder.push(spoiled(frames, last.end_frame, "one sample"))
    assert facts(changed[399]) == facts(outputs[399])
    assert facts(changed[400]) != facts(last)
