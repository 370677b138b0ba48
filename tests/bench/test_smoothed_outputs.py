"""A bench scores every subject as a decoder gives it out: smoothed where the bundle says so, each by its own filter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from benchmarks.cpu.array_models import draw_smoothing_model
from edgedistill.bench import QUICK, bench
from edgedistill.bench.holdout_scores import decode_holdout
from edgedistill.bench.intervals import measure_intervals
from edgedistill.bench.peers import LaggedRidge
from edgedistill.bench.robustness_subjects import LFP_RIDGE, choose_subjects
from edgedistill.bench.subjects import LFP_INT8, LFP_STUDENT, PEER_DYNAMIC, PEER_TORCH, SPIKE_STUDENT, open_candidates
from edgedistill.bundle import Bundle, write_bundle
from edgedistill.bundle.contents import RIDGE, SMOOTHING, SPIKE_FOLDER, read_holdout, read_ridge
from edgedistill.measure import closed_loop
from edgedistill.pipeline.channel_files import write_smoothing_file
from edgedistill.runtime import Decoder

from ..bundles import CHANNELS, OUTPUTS, manifest, write_test_bundle

pytestmark = pytest.mark.usefixtures("few_draws")

SMOOTHING_MODEL, SPIKE_SMOOTHING = draw_smoothing_model(OUTPUTS, 2), draw_smoothing_model(OUTPUTS, 1, 5)
ON_LFP = (LFP_STUDENT, LFP_INT8, PEER_DYNAMIC, PEER_TORCH)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Returns a bundle whose students and ridge each have a filter of their own."""
    folder = tmp_path_factory.mktemp("smoothed")
    plain = write_test_bundle(folder / "plain.edge", SMOOTHING_MODEL)
    rng = np.random.default_rng(0)
    ridge = {"weight": rng.normal(size=(OUTPUTS, 3, CHANNELS)), "bias": np.zeros(OUTPUTS), "penalty": np.ones(1)}
    ridge |= {f"smoothing.{name}": getattr(SPIKE_SMOOTHING, name) for name in ("keep", "gain", "raw_mean", "mean")}
    files = {name: plain.read(name) for name in plain.names}
    files[RIDGE] = save({name: np.ascontiguousarray(array, np.float32) for name, array in ridge.items()})
    files[SPIKE_FOLDER + SMOOTHING] = write_smoothing_file(SPIKE_SMOOTHING)[SMOOTHING]
    return write_bundle(folder / "all.edge", manifest(smoothing_delay_ms=33.0), files)


def test_every_decoder_of_the_lfp_gives_smoothed_outputs(bundle: Bundle) -> None:
    holdout = read_holdout(bundle)
    candidates, absent = open_candidates(bundle, holdout, "onnxruntime-int8", (*ON_LFP, SPIKE_STUDENT))
    assert not absent
    for candidate in candidates:
        raw = np.stack([candidate.engine.step(bin_) for bin_ in candidate.inputs])
        model = SPIKE_SMOOTHING if candidate.name == SPIKE_STUDENT else SMOOTHING_MODEL
        found = decode_holdout(candidate, bundle, holdout)
        assert found.guess is not None
        assert found.guess.tobytes() == model.run(raw).tobytes(), candidate.name
        if candidate.name in ON_LFP:
            assert found.fit.r2 is not None
            assert found.fit.r2 > 0.9, candidate.name


def test_what_a_bench_scores_is_what_a_decoder_gives_out(bundle: Bundle) -> None:
    holdout = read_holdout(bundle)
    (candidate,), _ = open_candidates(bundle, holdout, "onnxruntime-int8", (LFP_INT8,))
    decoded, decoder = decode_holdout(candidate, bundle, holdout), Decoder(bundle, "onnxruntime-int8")
    assert decoded.guess is not None
    assert np.stack([decoder.step(bin_) for bin_ in holdout.bins]).tobytes() == decoded.guess.tobytes()
    found = measure_intervals(bundle, holdout, [candidate], {LFP_INT8: decoded})
    assert found is not None
    whole = found.rows[0].coverage[1]
    assert whole.share is not None


def test_the_curves_compare_smoothed_outputs_of_each(bundle: Bundle) -> None:
    holdout = read_holdout(bundle)
    candidates, _ = open_candidates(bundle, holdout, "onnxruntime-int8", (LFP_INT8, SPIKE_STUDENT))
    decoded = {c.name: decode_holdout(c, bundle, holdout) for c in candidates}
    subjects = choose_subjects(bundle, holdout, candidates, decoded)
    assert list(subjects) == [LFP_INT8, LFP_RIDGE, SPIKE_STUDENT]
    for name in (LFP_INT8, SPIKE_STUDENT):
        engine, (candidate,) = subjects[name].engine, [c for c in candidates if c.name == name]
        for _ in range(2):  # a reset forgets what was before
            engine.reset()
            found = np.stack([engine.step(bin_) for bin_ in candidate.inputs])
            guess = decoded[name].guess
            assert guess is not None
            assert found.tobytes() == guess.tobytes()
    ridge, engine = LaggedRidge(read_ridge(bundle, Decoder(bundle, "oracle").shape)), subjects[LFP_RIDGE].engine
    engine.reset()
    raw = np.stack([ridge.step(bin_) for bin_ in holdout.bins])
    assert np.stack([engine.step(bin_) for bin_ in holdout.bins]).tobytes() == SPIKE_SMOOTHING.run(raw).tobytes()


def test_the_delay_of_the_filter_is_part_of_the_way_from_signal_to_output(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(closed_loop, "_require_room", lambda *_: None)
    with np.load(bundle.path / "holdout.npz") as stored:
        np.savez(tmp_path / "holdout.npz", **dict(stored), frames=np.zeros((500, CHANNELS), np.float32))
    files = {name: bundle.read(name) for name in bundle.names}
    files["holdout.npz"] = (tmp_path / "holdout.npz").read_bytes()
    whole = write_bundle(tmp_path / "frames.edge", manifest(smoothing_delay_ms=33.0), files)
    told = bench(whole, replace(QUICK, subjects=(LFP_STUDENT, LFP_INT8), steps=20, closed_loop_s=0.2)).to_json()
    found = told["frames_paced"]
    assert (found["group_delay_ms"], found["smoothing_delay_ms"]) == (12.0, 33.0)
    assert found["signal_to_output_ms"] > 45
    assert (told["bundle"]["smoothing_delay_ms"], told["bundle"]["smoothing"]) == (33.0, None)
