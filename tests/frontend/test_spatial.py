"""Lost channels are filled in as the definition says, in its order of operations, and the average is that of all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgedistill.frontend import FeatureModel, SpatialModel, Standardization, standardize

F = np.float32
TINY = F(2**-100)


def precision_of(channels: int, seed: int = 0) -> np.ndarray:
    """Returns a precision matrix (C, C) of channels of deviation 1 that share a few sources."""
    rng = np.random.default_rng(seed)
    sources = rng.normal(size=(channels, 3))
    covariance = sources @ sources.T + np.diag(rng.uniform(0.3, 1, channels))
    deviation = np.sqrt(np.diag(covariance))
    return np.linalg.inv(covariance / np.outer(deviation, deviation))


def model_of(
    channels: int, unknown: tuple[int, ...] = (), sweeps: int = 8, average: bool = True, features: int = 1
) -> SpatialModel:
    """Returns a model whose channels in `unknown` were never seen. In its last feature, channel 1 was not seen."""
    inputs = features * channels
    scale, gain, coupling = np.ones(inputs, F), np.zeros(inputs, F), np.zeros((features, channels, channels), F)
    for feature in range(features):
        hidden = (*unknown, 1) if feature and feature == features - 1 else unknown
        known = [c for c in range(channels) if c not in hidden]
        precision = precision_of(len(known), seed=feature)
        roots = np.sqrt(np.diag(precision))
        coupling[feature][np.ix_(known, known)] = precision / np.outer(roots, roots)
        at = [feature * channels + c for c in known]
        scale[at] = roots
        gain[at] = np.random.default_rng(1 + feature).uniform(0.8, 1.6, len(known))
    return SpatialModel(coupling, scale, F(1) / scale, gain, sweeps, average)


def drawn(model: SpatialModel, bins: int, seed: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Returns standardized numbers (B, I) and channels that are there (B, C): all, none and any in between."""
    rng = np.random.default_rng(seed)
    there = (rng.random((bins, model.channels)) < rng.uniform(0, 1, (bins, 1))) & model.known
    there[0], there[1] = model.known, False
    return (rng.normal(size=(bins, len(model.gain))) * rng.uniform(0.1, 30, (bins, 1))).astype(F), there


# ------------------------------------------------------------------------------------ the definition, plainly


def lane_sum(x: list[F]) -> F:
    """Adds value i to lane i mod 16 in order, then lanes that are 8, 4, 2 and 1 apart."""
    lanes = [*x[:16], *[F(0)] * (16 - len(x[:16]))]
    for begin in range(16, len(x), 16):
        for lane, value in enumerate([*x[begin : begin + 16], *[F(0)] * 16][:16]):
            lanes[lane] = lanes[lane] + value
    for half in (8, 4, 2, 1):
        lanes = [lanes[lane] + lanes[half + lane] for lane in range(half)]
    return lanes[0]


def ratio(a: F, b: F) -> F:
    return a / b if b > TINY else F(0)


def times(coupling: np.ndarray, y: list[F]) -> list[F]:
    """Multiplies by the coupling, four products at a time."""
    product = []
    for row in coupling:
        terms = [row[c] * y[c] for c in range(len(y))] + [F(0)] * (-len(y) % 4)
        total = F(0)
        for c in range(0, len(terms), 4):
            total = total + ((terms[c] + terms[c + 1]) + (terms[c + 2] + terms[c + 3]))
        product.append(total)
    return product


def fill_in(model: FeatureModel, present: list[F], there: list[bool]) -> list[F]:
    channels = range(len(present))
    lost = [bool(model.gain[c] > 0) and not there[c] for c in channels]
    a = lane_sum(present) / F(max(sum(there), 1))
    y = [(a if lost[c] else present[c]) * model.scale[c] for c in channels]
    product = times(model.coupling, y)
    r = [-product[c] if lost[c] else F(0) for c in channels]
    p, power = r, lane_sum([value * value for value in r])
    for _ in range(model.sweeps):
        q = times(model.coupling, p)
        alpha = ratio(power, lane_sum([p[c] * q[c] for c in channels]))
        y = [y[c] + alpha * p[c] for c in channels]
        r = [r[c] - alpha * q[c] if lost[c] else F(0) for c in channels]
        new = lane_sum([value * value for value in r])
        step = ratio(new, power)
        p = [r[c] + step * p[c] if new > TINY else F(0) for c in channels]
        r = [r[c] if new > TINY else F(0) for c in channels]
        power = new
    return [y[c] * model.inverse_scale[c] if lost[c] else present[c] for c in channels]


def reference(model: SpatialModel, standardized: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Computes the models' input (I,) of one bin, a feature at a time."""
    features = standardized.reshape(model.features, model.channels)
    return np.concatenate([reference_of_feature(*one, there) for one in zip(model.parts, features, strict=True)])


def reference_of_feature(model: FeatureModel, standardized: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Computes one feature (C,) of the models' input."""
    there = there & (model.gain > 0)
    present = [value if used else F(0) for value, used in zip(standardized, there, strict=True)]
    x = fill_in(model, present, there.tolist())
    known = int(sum(model.gain > 0))
    average = lane_sum(x) / F(known) if model.common_average and known > 1 else F(0)
    return np.array([(x[c] - average) * gain if gain > 0 else F(0) for c, gain in enumerate(model.gain)], F)


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("sweeps", [0, 8])
@pytest.mark.parametrize(
    ("channels", "unknown", "features"),
    [(1, (), 1), (3, (), 1), (5, (), 2), (5, (0, 3), 1), (5, (0, 3), 5), (17, (), 1), (17, (16,), 3), (2, (0,), 1)],
)
def test_equals_the_plain_definition_bit_for_bit(channels, unknown, features, sweeps, average):
    model = model_of(channels, unknown, sweeps, average, features)
    standardized, there = drawn(model, 12)
    got = model.complete(standardized, there)
    assert got.dtype == F
    np.testing.assert_array_equal(got, [reference(model, *one) for one in zip(standardized, there, strict=True)])


# ------------------------------------------------------------------------------------ what it is for


@pytest.mark.parametrize("channels", [3, 5, 17])
def test_with_many_sweeps_a_lost_channel_is_its_conditional_mean(channels):
    model = replace(model_of(channels, sweeps=64, average=False), gain=np.ones(channels, F))
    rng = np.random.default_rng(3)
    standardized = rng.normal(size=(20, channels)).astype(F)
    there = rng.random((20, channels)) < 0.6
    precision = precision_of(channels)
    for x, used, got in zip(standardized, there, model.complete(standardized, there), strict=True):
        lost = ~used
        expected = x.astype(np.float64)
        expected[lost] = np.linalg.solve(precision[np.ix_(lost, lost)], -precision[np.ix_(lost, used)] @ x[used])
        np.testing.assert_allclose(got, expected, atol=1e-4)


def test_without_sweeps_a_lost_channel_is_the_mean_of_the_others():
    model = replace(model_of(5, sweeps=0, average=False), gain=np.ones(5, F))
    there = np.array([[True, False, True, True, False]])
    got = model.complete(np.array([[1, 50, 2, 6, -50]], F), there)
    np.testing.assert_allclose(got, [[1, 3, 2, 6, 3]], rtol=1e-6)


@pytest.mark.parametrize("average", [True, False])
def test_a_bin_without_any_channel_is_zero(average):
    model = model_of(5, average=average)
    assert np.all(model.complete(np.full((3, 5), 7, F), np.zeros((3, 5), np.bool_)) == 0)


def test_where_none_is_lost_the_coupling_does_not_matter():
    model = model_of(5, unknown=(1,))
    standardized = drawn(model, 9)[0]
    there = np.broadcast_to(model.known, standardized.shape)
    broken = replace(model, coupling=np.full_like(model.coupling, np.nan))
    got = broken.complete(standardized, there)
    assert got.tobytes() == model.complete(standardized, there).tobytes()
    seen = standardized[:, model.known].astype(np.float64)
    expected = (seen - seen.mean(axis=1, keepdims=True)) * model.gain[model.known]
    np.testing.assert_allclose(got[:, model.known], expected, rtol=1e-4, atol=1e-5)


def test_an_unknown_channel_is_zero_and_the_others_are_as_without_it():
    model, without = model_of(4, unknown=(3,)), model_of(3)
    standardized, there = drawn(model, 40)
    got = model.complete(standardized, there)
    assert np.all(got[:, 3] == 0)
    assert got[:, :3].tobytes() == without.complete(standardized[:, :3], there[:, :3]).tobytes()


def test_one_channel_is_not_its_own_average():
    model = model_of(3, unknown=(0, 2))
    there = np.array([[False, True, False]])
    got = model.complete(np.array([[0, 2, 0]], F), there)
    np.testing.assert_array_equal(got, [[0, F(2) * model.gain[1], 0]])


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_what_a_channel_shows_that_is_not_there_does_not_matter(value):
    model = model_of(5)
    standardized, there = drawn(model, 30)
    spoiled = np.where(there, standardized, F(value))
    assert model.complete(spoiled, there).tobytes() == model.complete(standardized, there).tobytes()


def test_a_bin_does_not_depend_on_the_bins_beside_it():
    model = model_of(5)
    standardized, there = drawn(model, 600)  # more than are filled in at a time
    whole = model.complete(standardized, there)
    for k in (0, 1, 7, 255, 256, 300, 599):
        assert model.complete(standardized[k : k + 1], there[k : k + 1]).tobytes() == whole[k : k + 1].tobytes()


def test_a_loss_makes_no_step_in_a_common_average_that_the_others_determine():
    """The channels show one source, so that what is lost is known."""
    channels = 5
    precision = np.linalg.inv(np.full((channels, channels), 0.9999) + 1e-4 * np.eye(channels))
    roots = np.sqrt(np.diag(precision))
    ones = np.ones(channels, F)
    coupling = (precision / np.outer(roots, roots)).astype(F)[None]
    model = SpatialModel(coupling, roots.astype(F), F(1) / roots.astype(F), ones, 8, True)
    there = np.ones((2, channels), np.bool_)
    there[1, [0, 4]] = False
    whole, lossy = model.complete(np.full((2, channels), 20, F), there)
    np.testing.assert_allclose(lossy, whole, atol=0.02)


def test_the_average_is_that_of_the_slow_lfp_alone():
    model = replace(model_of(5, features=2), gain=np.ones(10, F))
    standardized = np.concatenate([np.full((1, 5), 3, F), np.full((1, 5), 7, F)], axis=1)
    z = model.complete(standardized, np.ones((1, 5), np.bool_))[0]
    assert z.tolist() == [0] * 5 + [7] * 5


def test_a_channel_is_lost_in_all_its_features():
    model = model_of(5, sweeps=64, features=3)
    standardized, there = drawn(model, 40)
    there[:, 2] = False
    other = standardized.copy()
    other[:, 2::5] = 1e6
    assert model.complete(other, there).tobytes() == model.complete(standardized, there).tobytes()
    z = model.complete(standardized, there)
    assert z[2:, [2, 7, 12]].any(axis=0).all()


def test_the_model_of_the_slow_lfp_alone_gives_its_part_of_the_input():
    model = model_of(5, features=3)
    whole = Standardization(np.arange(15.0), np.linspace(1, 2, 15), model)
    values, bad = np.random.default_rng(6).normal(size=(30, 15)) * 4, np.zeros((30, 5), np.bool_)
    bad[:, 3] = True
    slow = whole.slow().inputs(values[:, :5], bad)
    assert slow.tobytes() == whole.inputs(values, bad)[:, :5].tobytes()


# ------------------------------------------------------------------------------------ standardized channels


def test_wild_silent_bad_and_unknown_channels_are_not_there():
    values = np.array([[3.0, 2.0**21, np.nan, 5, 7, 9]])
    bad = np.array([[False, False, False, False, True, False]])
    known = np.array([True, True, True, True, True, False])
    statistics = np.ones(6), np.array([2.0, 1, 1, 0, 1, 1])
    standardized, there, judged = standardize(values, bad, statistics, known)
    assert standardized.dtype == F
    assert standardized.tolist() == [[1, 0, 0, 0, 0, 0]]
    assert there.tolist() == [[True, False, False, False, False, False]]
    assert judged.tolist() == [[False, True, True, False, True, False]]


def test_a_wild_band_makes_its_channel_bad_and_a_still_band_is_zero():
    values, known = np.array([[3.0, 4, 5, 2.0**21, 6, 7]]), np.ones(3, np.bool_)  # three channels of two features
    std = np.array([1.0, 1, 0, 1, 0, 1])
    standardized, there, judged = standardize(values, np.zeros((1, 3), np.bool_), (np.zeros(6), std), known)
    assert there.tolist() == [[False, True, False]]
    assert judged.tolist() == [[True, False, False]]
    assert standardized.tolist() == [[0, 4, 0, 0, 0, 0]]


def test_the_largest_standardized_value_that_counts_is_two_to_the_twentieth():
    values, known = np.array([[2.0**20, 2.0**20 + 1]]), np.ones(2, np.bool_)
    _, there, _ = standardize(values, np.zeros((1, 2), np.bool_), (np.zeros(2), np.ones(2)), known)
    assert there.tolist() == [[True, False]]


def test_inputs_are_standardized_then_completed():
    model = model_of(3)
    mean, std = np.array([1.0, -2, 3]), np.array([2.0, 0.5, 4])
    values = np.random.default_rng(4).normal(size=(6, 3)) * 5
    bad = np.random.default_rng(5).random((6, 3)) < 0.3
    standardized = np.where(bad, 0, (values - mean) / std).astype(F)
    got = Standardization(mean, std, model).inputs(values, bad)
    assert got.tobytes() == model.complete(standardized, ~bad).tobytes()
