"""A bench counts the true values of the holdout inside the intervals, with all channels and with a quarter lost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgedistill.bench import BenchResult, bench, intervals
from edgedistill.bench.comparison import BenchOptions
from edgedistill.bench.holdout_scores import decode_holdout
from edgedistill.bench.intervals import Intervals, draw_banks, draw_random, measure_intervals
from edgedistill.bench.subjects import LFP_INT8, LFP_STUDENT, Candidate, open_candidates
from edgedistill.bundle import Bundle, write_bundle
from edgedistill.bundle.contents import Holdout, read_holdout
from edgedistill.frontend import FrontEndConfig, SpatialModel
from edgedistill.runtime import Decoder

from ..bundles import BANDED, CHANNELS, CONFIG, SCORE_FROM, T, deviations, manifest, plain_array, write_test_bundle

CONFIDENCE = {"labelled_bins": 900, "standard_error": 0.02, "note": None}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_test_bundle(tmp_path_factory.mktemp("intervals") / "test.edge", confidence=CONFIDENCE)


@pytest.fixture(scope="module")
def result(bundle: Bundle) -> BenchResult:
    return bench(bundle, BenchOptions(subjects=(LFP_INT8,), steps=20, closed_loop_s=0, energy_s=0))


def measured(bundle: Bundle, *names: str) -> Intervals | None:
    holdout = read_holdout(bundle)
    candidates, _ = open_candidates(bundle, holdout, "onnxruntime", names)
    return measure_intervals(
        bundle, holdout, candidates, {c.name: decode_holdout(c, bundle, holdout) for c in candidates}
    )


def by_hand(bundle: Bundle, lost: list[int], level: float, config: FrontEndConfig = CONFIG) -> float:
    """Counts what the decoder's own arithmetic gives, bin by bin."""
    holdout, decoder = read_holdout(bundle), Decoder(bundle, "onnxruntime-int8")
    present, there = holdout.present.copy(), holdout.there.copy()
    present[:, [f * CHANNELS + c for f in range(config.features) for c in lost]], there[:, lost] = 0, False
    guess = np.stack([decoder.step(bin) for bin in plain_array(config).complete(present, there)])
    size = deviations().deviations(guess, np.full(T, len(lost)))
    away = np.abs(guess.astype(np.float64) - holdout.kinematics)[SCORE_FROM:]
    known = np.isfinite(away).all(axis=1)
    return float((away <= {0.5: 0.6744897501960817, 0.9: 1.6448536269514722}[level] * size[SCORE_FROM:])[known].mean())


def test_intervals_are_counted_on_the_bins_that_score(bundle: Bundle, result: BenchResult) -> None:
    found = result.to_json()["intervals"]
    json.dumps(found, allow_nan=False)
    assert found["subject"] == LFP_INT8
    assert found["confidence"] == CONFIDENCE
    rows = {row["lost"]: row for row in found["rows"]}
    assert [(row["channels"], row["draws"]) for row in rows.values()] == [(0, 1), (1, 3), (1, 4)]
    for one in rows["none"]["coverage"]:
        assert one["share"] == pytest.approx(by_hand(bundle, [], one["level"]))
    random = [np.random.default_rng([8, draw]).permutation(CHANNELS)[0] for draw in range(3)]
    assert rows["random"]["coverage"][1]["share"] == pytest.approx(np.mean([by_hand(bundle, [c], 0.9) for c in random]))
    assert rows["bank"]["deviation"][1] == pytest.approx(np.sqrt(deviations().at_rest[1, 1]))  # constant in this output
    assert rows["none"]["deviation"][1] == pytest.approx(np.sqrt(deviations().at_rest[0, 1]))


def test_a_lost_channel_is_lost_with_its_bands(tmp_path: Path) -> None:
    bundle = write_test_bundle(tmp_path / "bands.edge", bands=True)
    rows = measured(bundle, LFP_INT8).rows
    assert [(row.channels, row.draws) for row in rows] == [(0, 1), (1, 3), (1, 4)]
    assert rows[0].coverage[1].share == pytest.approx(by_hand(bundle, [], 0.9, BANDED))
    random = [np.random.default_rng([8, draw]).permutation(CHANNELS)[0] for draw in range(3)]
    shares = [by_hand(bundle, [c], 0.9, BANDED) for c in random]
    assert rows[1].coverage[1].share == pytest.approx(np.mean(shares))


def test_bins_without_any_channel_do_not_count(bundle: Bundle, tmp_path: Path) -> None:
    holdout = read_holdout(bundle)
    there, kinematics = holdout.there.copy(), holdout.kinematics.copy()
    there[400:500], kinematics[400:500] = False, 1e6
    parts = {
        "bins": holdout.bins,
        "present": holdout.present,
        "there": there,
        "kinematics": kinematics,
        "counts": holdout.counts,
    }
    np.savez(tmp_path / "holdout.npz", **parts, score_from=SCORE_FROM)
    files = {name: bundle.read(name) for name in bundle.names} | {
        "holdout.npz": (tmp_path / "holdout.npz").read_bytes()
    }
    other = measured(write_bundle(tmp_path / "gap.edge", manifest(), files), LFP_STUDENT)
    whole = measured(bundle, LFP_STUDENT)
    assert other.rows[0].coverage[1].share == pytest.approx(whole.rows[0].coverage[1].share, abs=0.02)


def test_the_int8_student_is_measured_and_the_float_one_where_there_is_none(bundle: Bundle) -> None:
    assert measured(bundle, LFP_STUDENT, LFP_INT8).subject == LFP_INT8
    assert measured(bundle, LFP_STUDENT).subject == LFP_STUDENT
    assert measured(bundle, "spike-student") is None


def test_a_long_holdout_is_cut_where_channels_are_lost(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    stops = []
    decode = intervals.decode_without

    def count(candidate: Candidate, holdout: Holdout, *rest: object) -> object:
        stops.append(rest[-1])
        return decode(candidate, holdout, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(intervals, "decode_without", count)
    monkeypatch.setattr(intervals, "MOST_BINS", 300)
    measured(bundle, LFP_STUDENT)
    assert stops == [T, *[SCORE_FROM + 300] * 7]


def test_banks_are_neighbours_that_together_are_all_channels_and_random_ones_are_known() -> None:
    ones, gain = np.ones(9, np.float32), np.ones(9, np.float32)
    gain[4] = 0
    spatial = SpatialModel(np.eye(9, dtype=np.float32)[None], ones, ones, gain, 8, True)
    banks = [bank.tolist() for bank in draw_banks(spatial, 2)]
    assert banks == [[0, 1], [2, 3], [5, 6], [7, 8]]
    assert all(4 not in lost and len(set(lost)) == 2 for lost in map(list, draw_random(spatial, 2)))


def test_the_trace_has_the_deviations_of_the_lfp_student(result: BenchResult) -> None:
    trace = result.to_json()["trace"]
    assert set(trace["deviation"]) == {LFP_INT8}
    decoded = np.array(trace["decoded"][LFP_INT8], np.float32)
    expected = deviations().deviations(decoded, np.zeros(len(decoded), np.int64))
    assert np.array(trace["deviation"][LFP_INT8]) == pytest.approx(expected, rel=1e-3)


def test_a_bench_for_gates_leaves_intervals_out(bundle: Bundle) -> None:
    options = BenchOptions(subjects=(LFP_INT8,), steps=20, closed_loop_s=0, energy_s=0, intervals=False)
    assert bench(bundle, options).to_json()["intervals"] is None
