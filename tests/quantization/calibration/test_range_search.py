"""The ranges of a real, small student are right, robust against artefacts, and refused where they cannot be found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from edgedistill.errors import EdgeDistillError, RecordingError
from edgedistill.models.student import Student
from edgedistill.models.tokenizer import stack_lags
from edgedistill.models.transformer import rms
from edgedistill.numerics.tensors import four_bit_parts
from edgedistill.quantization.calibration import range_search
from edgedistill.quantization.calibration.activations import compute_activations
from edgedistill.quantization.calibration.range_search import calibrate, measure_moments, measure_table
from edgedistill.quantization.calibration.ranges import Ranges
from edgedistill.quantization.calibration.recipe import DEFAULT_RECIPE, Recipe, load_recipe
from edgedistill.quantization.calibration.windows import draw_windows
from edgedistill.quantization.deployment import weights_from_student
from edgedistill.quantization.integers import quantize_student
from edgedistill.training.batches import TrainingSession, training_session_from_bins
from edgedistill.training.distill import make_student
from edgedistill.training.student_tasks import score_student

from ...training.sessions import GAP, STUDENT, session, session_bins

RECIPE = Recipe("r", "", "minmax", windows=9, window_bins=64)


@pytest.fixture(scope="module")
def day() -> TrainingSession:
    return session()


@pytest.fixture(scope="module")
def student(day: TrainingSession) -> Student:
    made = make_student([day], "lfp", replace(STUDENT, layers=2), 4, 0)
    torch.manual_seed(1)
    for name, parameter in made.named_parameters():
        if "norm" in name:  # gains must not be in what is observed
            parameter.data = 1 + 0.3 * torch.randn_like(parameter)
    return made.eval()


def test_traced_activations_give_the_output_of_the_student(student: Student, day: TrainingSession) -> None:
    bins = day.inputs("lfp")[:400].unflatten(0, (2, 200))
    found = compute_activations(student, day.id, bins)
    with torch.no_grad():
        assert torch.equal(found["latent"] * student.norm_out, student(day.id, bins))
        x = student.tokenizer(day.id, bins)
        q, k, v = student.layers[0].qkv(x)  # type: ignore[operator]
    assert torch.equal(found["layers.0.attn"], rms(x))
    for name, values in {"q": q, "k": k, "v": v}.items():
        assert torch.equal(found[f"layers.0.{name}"], values)
    assert found["layers.1.context"].shape == (2, STUDENT.heads, 200, STUDENT.d // STUDENT.heads)
    assert found["layers.1.hidden"].shape == (2, 200, STUDENT.ff)


def test_moments_are_those_of_what_the_matrices_read_in_the_drawn_windows(
    student: Student, day: TrainingSession
) -> None:
    found = measure_moments(student, day, "lfp", RECIPE, 3)
    layers = [f"layers.{i}.{name}" for i in range(2) for name in ("attn", "context", "mlp", "hidden")]
    assert found.keys() == {"bin", *layers}
    whole = compute_activations(student, day.id, day.inputs("lfp")[None])
    draw = draw_windows([day], "lfp", student.size, replace(RECIPE, strata=1), 3)
    bins = np.concatenate([np.arange(w.first_bin, w.first_bin + w.bins) for w in draw.windows])
    assert len(bins) > 300
    whole["bin"] = stack_lags(whole["bin"], student.tokenizer.lags)  # what the embedding reads
    for name, moments in found.items():
        x = whole[name][0]
        rows = (x if x.ndim == 2 else x.transpose(0, 1).flatten(1))[bins].double().numpy()
        assert np.allclose(moments, rows.T @ rows / len(bins), atol=1e-4 * np.square(rows).mean()), name


def test_an_embedding_of_very_many_inputs_has_no_moments_and_is_rounded_to_nearest(
    student: Student, day: TrainingSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = len(student.tokenizer.lags) * day.inputs("lfp").shape[1]
    monkeypatch.setattr(range_search, "MOST_INPUTS", inputs)
    whole = measure_moments(student, day, "lfp", RECIPE, 3)
    monkeypatch.setattr(range_search, "MOST_INPUTS", inputs - 1)
    found = measure_moments(student, day, "lfp", RECIPE, 3)
    assert whole.keys() - found.keys() == {"bin"}
    readout = score_student(student, "deployed", day)[0]
    weights, shape = weights_from_student(student, day.id, readout)
    ranges = calibrate(student, [day], "lfp", RECIPE, 3).values
    nearest, known, all_known = (
        quantize_student(shape, weights, ranges, (), four_bit_parts(shape), moments) for moments in (None, found, whole)
    )
    assert np.array_equal(known["embed.weight"], nearest["embed.weight"])
    assert not np.array_equal(known["embed.weight"], all_known["embed.weight"])
    assert not np.array_equal(known["layers.0.wq"], nearest["layers.0.wq"])


def test_minmax_finds_the_largest_activation_of_the_streamed_student(student: Student, day: TrainingSession) -> None:
    seen: list[tuple[int, int]] = []
    ranges = calibrate(student, [day], "lfp", RECIPE, 3, lambda n, of: seen.append((n, of)))
    whole = compute_activations(student, day.id, day.inputs("lfp")[None])
    for name, values in ranges.values.items():
        x = whole[name][0]
        x = x[None] if x.ndim == 2 else x  # (heads, n, width)
        largest = torch.zeros(len(x))
        for window in ranges.windows:
            stretch = x[:, window["first_bin"] : window["first_bin"] + window["bins"]]
            largest = torch.maximum(largest, stretch.abs().flatten(1).amax(1))
        np.testing.assert_allclose(values, largest, rtol=1e-5)
    assert seen == [(n, 9) for n in range(1, 10)]


@pytest.mark.parametrize("name", ["entropy", "minmax", "moving-minmax", "mse", "percentile"])
def test_every_recipe_gives_a_range_and_a_table_row_for_each_activation(
    student: Student, day: TrainingSession, name: str
) -> None:
    ranges = calibrate(student, [day], "lfp", replace(load_recipe(name), windows=9, window_bins=64), 0)
    ranges.require_size(student.size)
    assert [row["name"] for row in ranges.table] == list(ranges.values)
    assert len(ranges.values["layers.1.k"]) == STUDENT.heads
    assert all(0 <= row["clipped"] < 0.05 and 5 < row["noise_db"] < 60 for row in ranges.table)
    assert (ranges.sessions, ranges.left_out, len(ranges.windows)) == ({"s1": None}, (), 9)
    assert ranges == calibrate(student, [day], "lfp", ranges.recipe, 0)


def test_the_measured_table_agrees_with_the_observers(student: Student, day: TrainingSession) -> None:
    ranges = calibrate(student, [day], "lfp", replace(RECIPE, method="mse"), 0)
    for found, row in zip(measure_table(student, [day], "lfp", ranges), ranges.table, strict=True):
        assert (found["name"], found["range"]) == (row["name"], row["range"])
        assert abs(found["clipped"] - row["clipped"]) < 1e-3
        assert abs(found["noise_db"] - row["noise_db"]) < 0.5


@pytest.mark.parametrize("after", [1, 20, 150])
def test_an_artefact_of_a_thousand_deviations_hardly_moves_the_default_ranges(student: Student, after: int) -> None:
    """The artefact comes before the common average, in a window, in a run-up, or before what rings after it."""
    recipe = replace(load_recipe(DEFAULT_RECIPE), windows=40, window_bins=64)
    bins = session_bins()
    assert bins.lfp is not None
    usual = calibrate(student, [training_session_from_bins(bins, GAP)], "lfp", recipe, 0)
    lfp, deviation = bins.lfp.copy(), bins.lfp.std()
    first = usual.windows[20]["first_bin"] - after
    lfp[first : first + 10, 0] += 1000 * deviation
    lfp[first + 10 : first + 300, 0] -= 60 * deviation * np.exp(-np.arange(290) / 60)
    hit = calibrate(student, [training_session_from_bins(replace(bins, lfp=lfp), GAP)], "lfp", recipe, 0)
    assert len(hit.windows) == 40
    assert hit.left_out
    for name, values in usual.values.items():
        np.testing.assert_allclose(hit.values[name], values, rtol=0.25, err_msg=name)


@pytest.mark.parametrize("value", [1e6, torch.nan])
def test_an_artefact_in_the_run_up_is_masked_as_a_bad_channel_is(
    student: Student, day: TrainingSession, value: float
) -> None:
    recipe = replace(RECIPE, windows=2, window_bins=2000)
    usual = calibrate(student, [replace(day, settled=0)], "lfp", recipe, 0)

    def with_run_up_of(value: float) -> Ranges:
        lfp = day.inputs("lfp").clone()
        lfp[usual.windows[0]["first_bin"] - 5] = value
        return calibrate(student, [replace(day, lfp=lfp, settled=0)], "lfp", recipe, 0)

    hit = with_run_up_of(value)
    assert hit.windows == usual.windows
    assert hit.values == with_run_up_of(0.0).values


def test_sessions_that_do_not_fit_the_student_are_refused_by_name(student: Student, day: TrainingSession) -> None:
    with pytest.raises(RecordingError, match=r"session s1 does not fit[\s\S]*4 channels[\s\S]*3 channels"):
        calibrate(student, [session(channels=4)], "lfp", RECIPE, 0)
    with pytest.raises(RecordingError, match=r"session s9 does not fit[\s\S]*s1"):
        calibrate(student, [day, session("s9")], "lfp", RECIPE, 0)
    with pytest.raises(RecordingError, match="nothing to calibrate on"):
        calibrate(student, [], "lfp", RECIPE, 0)


def test_parts_to_keep_must_exist_and_attention_cannot_be_kept(student: Student, day: TrainingSession) -> None:
    with pytest.raises(EdgeDistillError, match=r"'layers.0.atention'[\s\S]*did you mean|unknown part"):
        calibrate(student, [day], "lfp", replace(RECIPE, keep=("layers.0.atention",)), 0)
    with pytest.raises(EdgeDistillError, match=r"'layers.1.attention' cannot be kept"):
        calibrate(student, [day], "lfp", replace(RECIPE, keep=("layers.1.attention",)), 0)


def test_a_constant_activation_is_named_with_its_head(student: Student, day: TrainingSession) -> None:
    silent = make_student([day], "lfp", STUDENT, 4, 0)
    silent.layers[0].wk.data[STUDENT.d // STUDENT.heads :] = 0  # type: ignore[index, union-attr]
    with pytest.raises(EdgeDistillError, match=r"layers\.0\.k, head 1"):
        calibrate(silent, [day], "lfp", RECIPE, 0)
