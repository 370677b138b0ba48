"""Tests what the robustness curves of a bundle compare, and what each of them decodes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from edgedistill.bench import QUICK, bench
from edgedistill.bench.extras import measure_robustness
from edgedistill.bench.holdout_scores import decode_holdout
from edgedistill.bench.peers import LaggedRidge
from edgedistill.bench.robustness_subjects import LFP_RIDGE, choose_subjects
from edgedistill.bench.subjects import LFP_INT8, LFP_STUDENT, SPIKE_INT8, open_candidates
from edgedistill.bundle import Bundle, write_bundle
from edgedistill.bundle.contents import RIDGE, Ridge, read_holdout
from edgedistill.errors import BundleError
from edgedistill.measure import robustness
from edgedistill.measure.damage import LfpSignal, SpikeSignal

from ..bundles import CHANNELS, OUTPUTS, manifest, write_test_bundle

pytestmark = pytest.mark.usefixtures("few_draws")
LAGS = 4
STUDENTS = (LFP_STUDENT, LFP_INT8, "spike-student", SPIKE_INT8)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_test_bundle(tmp_path_factory.mktemp("robustness") / "plain.edge")


def test_curves_of_a_bundle_with_bands_are_those_of_its_channels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_test_bundle(tmp_path / "bands.edge", bands=True)
    monkeypatch.setattr(robustness, "DRAWS", 2)
    holdout = read_holdout(bundle)
    candidates, _ = open_candidates(bundle, holdout, "onnxruntime", (LFP_STUDENT,))
    decoded = {c.name: decode_holdout(c, bundle, holdout) for c in candidates}
    subjects = choose_subjects(bundle, holdout, candidates, decoded)
    signal = subjects[LFP_STUDENT].signal
    assert (signal.shape[1], signal.channels) == (3 * CHANNELS, CHANNELS)
    assert np.array_equal(signal.intact(), holdout.bins)
    curves = {curve.kind: curve for curve in measure_robustness(bundle, candidates, holdout, decoded)}
    kept = curves["lost channels"].kept_share(LFP_STUDENT)
    assert kept[0] == 1 > kept[-1]


def ridge_tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((OUTPUTS, LAGS + 1, CHANNELS)).astype(np.float32)
    return {"weight": weight, "bias": np.array([1, -2], np.float32), "penalty": np.ones(1, np.float32)}


def with_ridge(bundle: Bundle, path: Path, **changes: np.ndarray | None) -> Bundle:
    tensors = {name: array for name, array in (ridge_tensors() | changes).items() if array is not None}
    files = {name: bundle.read(name) for name in bundle.names}
    return write_bundle(path, manifest(), files | {RIDGE: save(tensors)})


def test_the_ridge_reads_the_newest_bins_as_a_matrix_product_does() -> None:
    tensors = ridge_tensors()
    ridge = LaggedRidge(Ridge(tensors["weight"], tensors["bias"], 1.0))
    bins = np.random.default_rng(1).standard_normal((20, CHANNELS)).astype(np.float32)
    for _ in range(2):  # a reset forgets the bins before it
        ridge.reset()
        guess = np.stack([ridge.step(bin) for bin in bins])
        for t, found in enumerate(guess):
            expected = tensors["bias"].astype(np.float64)
            for lag in range(min(t, LAGS) + 1):
                expected = expected + tensors["weight"][:, lag].astype(np.float64) @ bins[t - lag]
            assert found == pytest.approx(expected, abs=1e-4)


def test_students_and_ridge_decode_the_same_array(bundle: Bundle, tmp_path: Path) -> None:
    whole = with_ridge(bundle, tmp_path / "ridge.edge")
    holdout = read_holdout(whole)
    candidates, _ = open_candidates(whole, holdout, "onnxruntime-int8", STUDENTS)
    decoded = {c.name: decode_holdout(c, whole, holdout) for c in candidates}
    found = choose_subjects(whole, holdout, candidates, decoded)
    assert list(found) == [LFP_INT8, LFP_RIDGE, SPIKE_INT8]
    lfp = found[LFP_INT8].signal
    assert found[LFP_RIDGE].signal is lfp
    assert isinstance(lfp, LfpSignal)
    assert np.array_equal(lfp.intact(), holdout.bins)
    assert isinstance(found[SPIKE_INT8].signal, SpikeSignal)
    without = [c for c in candidates if c.name != LFP_INT8]
    assert list(choose_subjects(whole, holdout, without, decoded)) == [LFP_STUDENT, LFP_RIDGE, SPIKE_INT8]


def test_curves_begin_with_the_r2_of_the_bench(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = with_ridge(bundle, tmp_path / "ridge.edge")
    for levels in ("LOST", "NOISE", "DAYS"):
        monkeypatch.setattr(robustness, levels, getattr(robustness, levels)[:2])
    monkeypatch.setattr(robustness, "DRAWS", 1)
    result = bench(whole, replace(QUICK, subjects=(LFP_STUDENT, LFP_INT8, SPIKE_INT8), steps=10, robustness=True))
    assert LFP_RIDGE not in {one.name for one in result.absent}
    rows = {subject.name: subject.fit.r2 for subject in result.subjects}
    for curve in result.to_json()["robustness"]:
        assert set(curve["r2"]) == set(curve["kept_share"]) == {LFP_INT8, LFP_RIDGE, SPIKE_INT8}
        assert curve["r2"][LFP_INT8][0]["mean"] == pytest.approx(rows[LFP_INT8], abs=1e-9)
        assert curve["kept_share"][LFP_INT8][0] == 1
        assert all(limit["subject"] == LFP_INT8 for limit in curve["limits"])


def test_a_bundle_without_ridge_names_it_where_curves_were_asked_for(bundle: Bundle) -> None:
    quick = replace(QUICK, subjects=(LFP_STUDENT,), steps=10)
    assert LFP_RIDGE not in {one.name for one in bench(bundle, quick).absent}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(robustness, "DRAWS", 1)
        found = bench(bundle, replace(quick, robustness=True))
    (reason,) = [one.reason for one in found.absent if one.name == LFP_RIDGE]
    assert "build it again" in reason
    assert found.extras.robustness is not None
    assert all(LFP_RIDGE not in curve.r2 for curve in found.extras.robustness)


@pytest.mark.parametrize(
    "changes",
    [
        {"weight": None},
        {"weight": np.zeros((OUTPUTS, LAGS + 1, CHANNELS + 1), np.float32)},
        {"weight": np.zeros((OUTPUTS, 0, CHANNELS), np.float32)},
        {"weight": np.zeros((OUTPUTS, CHANNELS), np.float32)},
        {"bias": np.full(OUTPUTS, np.nan, np.float32)},
        {"penalty": np.ones(1)},
    ],
)
def test_a_damaged_ridge_is_refused_by_name(
    bundle: Bundle, tmp_path: Path, changes: dict[str, np.ndarray | None]
) -> None:
    damaged = with_ridge(bundle, tmp_path / "damaged.edge", **changes)
    holdout = read_holdout(damaged)
    candidates, _ = open_candidates(damaged, holdout, "onnxruntime-int8", (LFP_STUDENT, LFP_INT8))
    decoded = {c.name: decode_holdout(c, damaged, holdout) for c in candidates}
    with pytest.raises(BundleError, match=rf"'{RIDGE}'.*does not fit"):
        measure_robustness(damaged, candidates, holdout, decoded)
