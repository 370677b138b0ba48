"""The INT8 student of a session decodes nearly as well as in float, also with artefacts in the recording."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from edgedistill.data.bins import SessionBins
from edgedistill.models.student import Student
from edgedistill.numerics import Oracle
from edgedistill.numerics.tensors import four_bit_parts
from edgedistill.quantization.calibration.range_search import calibrate
from edgedistill.quantization.calibration.recipe import (
    DEFAULT_RECIPE,
    ROUNDINGS,
    Recipe,
    list_recipes,
    load_recipe,
)
from edgedistill.quantization.deployment import QuantizedStudent, quantize_for_session
from edgedistill.training.batches import TrainingSession, training_session_from_bins
from edgedistill.training.distill import make_student
from edgedistill.training.evaluate import Readout, find_calm_bins, r2_score, stream_latents, unscale_behavior
from edgedistill.training.few_labels import keep_first_labels
from edgedistill.training.student_tasks import score_student

from ..training.sessions import GAP, STUDENT, session_bins

CHANNELS = 12
DEFAULT = replace(load_recipe(DEFAULT_RECIPE), windows=24, window_bins=64, finetune=None)


@pytest.fixture(scope="module")
def bins() -> SessionBins:
    """Returns bins as the common average leaves them: an artefact on all channels points where they do not vary."""
    made = session_bins(channels=CHANNELS)
    assert made.lfp is not None
    return replace(made, lfp=made.lfp - made.lfp.mean(1, keepdims=True))


@pytest.fixture(scope="module")
def day(bins: SessionBins) -> TrainingSession:
    return training_session_from_bins(bins, GAP)


@pytest.fixture(scope="module")
def student(day: TrainingSession) -> Student:
    return make_student([day], "lfp", STUDENT, 4, 0).eval()


@pytest.fixture(scope="module")
def readout(student: Student, day: TrainingSession) -> Readout:
    return score_student(student, "deployed", day)[0]


def quantized(student: Student, day: TrainingSession, readout: Readout, recipe: Recipe = DEFAULT) -> QuantizedStudent:
    return quantize_for_session(student, day, "lfp", readout, calibrate(student, [day], "lfp", recipe, 0))


def test_the_int8_student_decodes_nearly_as_well_as_the_float_student(
    student: Student, day: TrainingSession, readout: Readout
) -> None:
    float_r2 = score_student(student, "deployed", day)[1].r2
    assert float_r2 > 0.5
    for name in list_recipes():
        recipe = replace(load_recipe(name), windows=24, window_bins=64, finetune=None)
        assert abs(quantized(student, day, readout, recipe).score.r2 - float_r2) < 0.01, name


def test_the_score_equals_that_of_single_steps_from_the_first_bin(
    student: Student, day: TrainingSession, readout: Readout
) -> None:
    found = quantized(student, day, readout)
    oracle = Oracle(found.model)
    guess = np.stack([oracle.step(bin_) for bin_ in day.inputs("lfp").numpy()])
    test = day.split.test
    assert found.score.r2 == np.mean(r2_score(guess[test].astype(np.float64), unscale_behavior(day)[test]))


def test_a_refitted_readout_is_no_worse_on_the_training_block(
    student: Student, day: TrainingSession, readout: Readout
) -> None:
    def error(recipe: Recipe) -> float:
        guess = Oracle(quantized(student, day, readout, recipe).model).run(day.inputs("lfp").numpy())
        train = slice(day.settled, day.split.train.stop)
        return float(np.mean((guess[train] - unscale_behavior(day)[train]) ** 2))

    coarse = replace(DEFAULT, method="percentile", percentile=70.0)  # so much is clipped that it matters
    assert error(coarse) < error(replace(coarse, refit_readout=False))


def test_the_readout_sees_the_latents_alone_where_that_decodes_validation_better(
    student: Student, day: TrainingSession
) -> None:
    """Few labels and bins of noise: neither the float nor the INT8 read-out uses the lagged bins."""
    noise = np.random.default_rng(0).normal(size=day.inputs("lfp").shape)
    latents = stream_latents(student, day.id, day.inputs("lfp"))
    asked = latents[:, :4] @ np.random.default_rng(1).normal(size=(4, 2)) + noise[:, :2]
    few = keep_first_labels(replace(day, behavior=torch.from_numpy(asked.astype(np.float32))), 0.05)
    readout = score_student(student, "deployed", few)[0]
    model = quantized(student, few, readout).model
    assert not readout.weight[:, model.shape.d :].any()
    assert readout.weight.any()
    assert not model.tensors["readout.lags"].any()
    assert model.tensors["readout.latent"].any()
    assert (model.tensors["readout.lags.scale"] == 1).all()


@pytest.mark.parametrize("weights", [8, 4])
def test_without_refitting_the_behavior_is_not_used(
    student: Student, day: TrainingSession, readout: Readout, weights: int
) -> None:
    assert day.behavior is not None
    recipe = replace(DEFAULT, refit_readout=False, weights=weights)
    ranges = calibrate(student, [replace(day, behavior=None)], "lfp", recipe, 0)
    other = replace(day, behavior=day.behavior.flip(0))
    mine, its = (quantize_for_session(student, one, "lfp", readout, ranges) for one in (day, other))
    assert mine.score != its.score
    assert (mine.model.tensors["readout.bias"] == readout.bias.astype(np.float32)).all()
    for name, tensor in mine.model.tensors.items():
        assert (tensor == its.model.tensors[name]).all(), name


@pytest.mark.parametrize("where", ["one channel", "all channels"])
def test_an_artefact_of_a_thousand_deviations_costs_little_r2(
    student: Student, bins: SessionBins, day: TrainingSession, readout: Readout, where: str
) -> None:
    assert bins.lfp is not None
    lfp, struck = bins.lfp.copy(), slice(3000, 3010)
    channels = slice(4, 5) if where == "one channel" else slice(None)
    lfp[struck, channels] += 1000 * lfp.std(0)[channels]
    hit = training_session_from_bins(replace(bins, lfp=lfp), GAP)
    assert abs(hit.standardization.std / day.standardization.std - 1).max() < 0.05
    clean = quantized(student, day, readout).score.r2
    fitted = score_student(student, "deployed", hit)[0]
    assert quantized(student, hit, fitted).score.r2 > clean - 0.01


def test_a_recipe_of_four_bits_rounds_by_the_inputs_unless_it_says_nearest(
    student: Student, day: TrainingSession, readout: Readout
) -> None:
    recipe = replace(DEFAULT, weights=4, eight=("layers.0.out",))
    found = {name: quantized(student, day, readout, replace(recipe, rounding=name)).model for name in ROUNDINGS}
    for model in found.values():
        assert set(model.four) == {part for part in four_bit_parts(model.shape) if part != "layers.0.out"}
    gptq, nearest = (model.tensors for model in found.values())
    assert np.array_equal(gptq["layers.0.wo"], nearest["layers.0.wo"])
    assert not np.array_equal(gptq["layers.0.wdown"], nearest["layers.0.wdown"])


def test_bins_are_not_calm_while_the_readout_still_sees_an_artefact(day: TrainingSession) -> None:
    lfp = day.inputs("lfp").clone()
    lfp[500, 3] = -40
    hit = replace(day, lfp=lfp)
    assert np.flatnonzero(~find_calm_bins(hit, "lfp", 3)).tolist() == [500, 501, 502, 503]
    assert find_calm_bins(day, "lfp", 3).all()
    assert find_calm_bins(hit, "spikes", 3).all()
