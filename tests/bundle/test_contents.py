"""Each file of a bundle is parsed to typed values, or refused by an error with its name and what is wrong with it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from benchmarks.cpu.array_models import draw_smoothing_model
from edgedistill.bundle import Bundle, write_bundle
from edgedistill.bundle.contents import (
    DEVIATION,
    FILL_IN,
    HOLDOUT,
    INT8_WEIGHTS,
    RANGES,
    REFERENCE,
    RIDGE,
    SMOOTHING,
    SPIKE_FOLDER,
    SPIKE_MODEL,
    TEACHER_FACTS,
    RangeRow,
    TeacherFacts,
    read_decoder_spec,
    read_deviation_model,
    read_holdout,
    read_int8_model,
    read_range_table,
    read_raw_frames,
    read_reference,
    read_ridge,
    read_smoothing_model,
    read_spatial_model,
    read_spike_student,
    read_standardization,
    read_teacher_facts,
    read_tensors,
)
from edgedistill.bundle.manifest import Channel, GraphVerdict, Session
from edgedistill.bundle.spike_student import open_spike_student
from edgedistill.errors import BundleError
from edgedistill.frontend import settling_bins
from edgedistill.numerics.tensors import four_bit_parts
from edgedistill.pipeline.channel_files import write_smoothing_file
from edgedistill.runtime import Decoder

from ..bundles import (
    BANDED,
    CONFIG,
    OUTPUTS,
    SCORE_FROM,
    SHAPE,
    SPIKE_SHAPE,
    UNITS,
    T,
    banded_manifest,
    manifest,
    write_test_bundle,
)
from ..numerics.students import random_model


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_test_bundle(tmp_path_factory.mktemp("contents") / "test.edge")


def with_file(path: Path, bundle: Bundle, name: str, data: bytes | None) -> Bundle:
    """Writes the bundle with one file replaced, or without it."""
    files = {other: bundle.read(other) for other in bundle.names if other != name}
    return write_bundle(path, manifest(), files if data is None else files | {name: data})


def npz(**arrays: Any) -> bytes:
    np.savez(file := io.BytesIO(), **arrays)
    return file.getvalue()


# ---------------------------------------------------------------- files that are present


def test_the_decoder_is_what_the_manifest_says(bundle: Bundle) -> None:
    spec = read_decoder_spec(bundle)
    assert (spec.name, spec.sha256, spec.shape, spec.front_end) == ("test", bundle.sha256, SHAPE, CONFIG)
    assert (spec.channel_ids, spec.output_names) == (("0", "1", "2"), ("cursor_vel_x", "cursor_vel_y"))
    assert spec.normalization.std == (60.0, 60.0, 60.0)
    assert spec.warmup_bins == SHAPE.receptive_field + settling_bins(CONFIG)


def test_the_holdout_has_its_arrays_and_frames_where_it_has_some(bundle: Bundle, tmp_path: Path) -> None:
    holdout = read_holdout(bundle)
    for part in (holdout.bins, holdout.present):
        assert (part.shape, part.dtype) == ((T, SHAPE.channels), np.float32)
    assert (holdout.there.shape, holdout.there.dtype) == ((T, SHAPE.channels), np.bool_)
    assert holdout.counts is not None
    assert holdout.counts.shape == (T, UNITS)
    assert (holdout.kinematics.shape, holdout.score_from) == ((T, OUTPUTS), SCORE_FROM)
    assert read_raw_frames(bundle) is None
    frames = np.arange(6).reshape(2, 3)
    arrays = {"bins": np.ones((1, 3)), "present": np.ones((1, 3)), "there": np.ones((1, 3), np.bool_)}
    other = with_file(tmp_path / "a.edge", bundle, HOLDOUT, npz(**arrays, kinematics=[[1]], frames=frames))
    assert np.array_equal(read_raw_frames(other), frames)
    assert (read_holdout(other).counts, read_holdout(other).score_from) == (None, 0)


def test_what_a_bundle_may_lack_is_empty(bundle: Bundle) -> None:
    assert read_reference(bundle) is None
    assert read_range_table(bundle) == ()
    assert bundle.manifest.graphs == {}
    assert bundle.manifest.provenance is None
    assert bundle.manifest.channels is None
    assert bundle.manifest.session == Session("s1", "monkey", None)


def test_channels_session_and_series_are_read_as_a_build_writes_them(tmp_path: Path) -> None:
    channels = [{"id": str(i), "label": f"e{i}" if i else None, "position": [0, i] if i else None} for i in range(3)]
    series = {"s1": {"lfp": "acquisition/lfp"}}
    session = {"id": "s1", "subject": None, "start": "2024-05-01T12:00:00+00:00"}
    written = manifest(channels=channels, session=session, provenance={"series": series})
    found = write_bundle(tmp_path / "a.edge", written, {}).manifest
    assert found.channels == (Channel("0"), Channel("1", "e1", (0.0, 1.0)), Channel("2", "e2", (0.0, 2.0)))
    assert found.session == Session("s1", None, "2024-05-01T12:00:00+00:00")
    assert found.confidence is None
    assert found.provenance is not None
    assert (found.provenance.series, found.provenance.to_json()) == (series, {"series": series})


def test_a_bundle_with_more_channels_than_columns_is_refused(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "a.edge", manifest(channels=[{"id": "0"}] * 4), {})
    with pytest.raises(BundleError, match="contradicts itself"):
        read_decoder_spec(bundle)


def test_a_decoder_with_bands_has_more_inputs_than_channels(tmp_path: Path) -> None:
    bundle = write_test_bundle(tmp_path / "a.edge", bands=True)
    spec, holdout = read_decoder_spec(bundle), read_holdout(bundle)
    assert (spec.shape.channels, spec.front_end.channels, len(spec.channel_ids)) == (9, 3, 3)
    assert spec.front_end == BANDED
    assert (holdout.bins.shape, holdout.there.shape) == ((T, 9), (T, 3))
    found = read_standardization(bundle, spec)
    assert (len(found.mean), found.spatial.features) == (9, 3)
    np.testing.assert_array_equal(found.inputs(np.tile(found.mean, (2, 1)), ~holdout.there[:2]), 0)


@pytest.mark.parametrize("bands", ["12-30", {}, [[12, "30"]], [[10**400, 1]], [[1, 999]], [[1e-9, 30]]])
def test_bands_that_no_filter_holds_are_refused_by_name(tmp_path: Path, bands: object) -> None:
    front_end = BANDED.to_json() | {"bands": bands}
    bundle = write_bundle(tmp_path / "a.edge", banded_manifest() | {"frontend": front_end}, {})
    with pytest.raises(BundleError, match=r"manifest\.json"):
        read_decoder_spec(bundle)


@pytest.mark.parametrize("change", [{"frontend": CONFIG.to_json()}, {"model": SHAPE.to_json()}])
def test_bands_that_do_not_fit_the_model_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    bundle = write_bundle(tmp_path / "a.edge", banded_manifest() | change, {})
    with pytest.raises(BundleError, match="contradicts itself"):
        read_decoder_spec(bundle)


def test_tables_of_teachers_and_ranges(bundle: Bundle, tmp_path: Path) -> None:
    facts = {"spike-teacher": {"params": 7, "window": 12}}
    other = with_file(tmp_path / "a.edge", bundle, TEACHER_FACTS, json.dumps(facts).encode())
    assert read_teacher_facts(other) == {"spike-teacher": TeacherFacts(7, 12)}
    row = {"name": "bin", "range": 4.5, "clipped": 0, "noise_db": 30}
    text = json.dumps({"table": [row, {"name": "incomplete"}]})
    other = with_file(tmp_path / "b.edge", bundle, RANGES, text.encode())
    assert read_range_table(other) == (RangeRow("bin", 4.5, 0.0, 30.0),)


def test_the_spike_student_is_a_bundle_of_its_own(bundle: Bundle) -> None:
    own = open_spike_student(bundle)
    assert read_decoder_spec(own).shape == read_spike_student(bundle).shape == SPIKE_SHAPE
    assert own.read("student.onnx") == bundle.read("subjects/spike-student/student.onnx")
    assert (own.manifest.name, own.sha256) == ("test_spike_student", bundle.sha256)


def test_verdicts_on_graphs_are_read_where_a_build_wrote_them(tmp_path: Path) -> None:
    written = {
        "student.int8.onnx": {"usable": False, "reason": "off", "r2_difference": -0.1, "of a later version": 1},
        "subjects/spike-student/student.onnx": {"usable": True},
    }
    bundle = write_test_bundle(tmp_path / "a.edge", graphs=written)
    assert bundle.manifest.graphs["student.int8.onnx"] == GraphVerdict(False, "off", r2_difference=-0.1)
    assert open_spike_student(bundle).manifest.graphs == {"student.onnx": GraphVerdict(True)}


# ---------------------------------------------------------------- files that are wrong


READERS: dict[str, Callable[[Bundle], object]] = {
    HOLDOUT: read_holdout,
    REFERENCE: read_reference,
    RANGES: read_range_table,
    SPIKE_MODEL: read_spike_student,
    TEACHER_FACTS: read_teacher_facts,
    INT8_WEIGHTS: lambda bundle: read_int8_model(bundle, SHAPE),
    "student.safetensors": lambda bundle: read_tensors(bundle, "student.safetensors"),
    FILL_IN: lambda bundle: read_spatial_model(bundle, CONFIG),
    DEVIATION: lambda bundle: read_deviation_model(bundle, SHAPE.channels, SHAPE.outputs),
}


OTHER_KINDS = (b"", b"no", b"[]", b"{}", b"[1]", b'{"table": [1]}', b'{"model": 3}', b"PK\x03\x04")
NO_ROWS = {(RANGES, b"{}"), (RANGES, b'{"model": 3}'), (TEACHER_FACTS, b"{}")}  # tables that are empty and not damaged


@pytest.mark.parametrize(
    ("name", "data"), [(name, data) for name in READERS for data in OTHER_KINDS if (name, data) not in NO_ROWS]
)
def test_a_file_of_another_kind_is_refused_by_name(bundle: Bundle, tmp_path: Path, name: str, data: bytes) -> None:
    other = with_file(tmp_path / "a.edge", bundle, name, data)
    with pytest.raises(BundleError) as caught:
        READERS[name](other)
    assert name in str(caught.value)


INPUTS = {"bins": np.ones((2, 3)), "present": np.ones((2, 3)), "there": np.ones((2, 3), np.bool_)}
KINEMATICS = {"kinematics": np.ones((2, 2))}


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        (INPUTS, "holds no 'kinematics'"),
        (INPUTS | KINEMATICS | {"bins": np.ones((0, 3))}, "holds no 'bins'"),
        ({"bins": INPUTS["bins"]} | KINEMATICS, "holds no 'present'"),
        ({name: INPUTS[name] for name in ("bins", "present")} | KINEMATICS, "holds no 'there'"),
        (INPUTS | KINEMATICS | {"present": np.ones((3, 3))}, "contradicts itself"),
        (INPUTS | KINEMATICS | {"bins": np.ones((2, 4)), "present": np.ones((2, 4))}, "contradicts itself"),
        (INPUTS | KINEMATICS | {"bins": np.ones(2), "present": np.ones(2)}, "contradicts itself"),
        (INPUTS | KINEMATICS | {"there": np.ones(2, np.bool_)}, "contradicts itself"),
        (INPUTS | KINEMATICS | {"score_from": np.ones(2)}, "damaged"),
    ],
)
def test_a_holdout_without_a_part_is_refused(bundle: Bundle, tmp_path: Path, arrays: dict, says: str) -> None:
    with pytest.raises(BundleError, match=rf"'holdout\.npz'.*{says}"):
        read_holdout(with_file(tmp_path / "a.edge", bundle, HOLDOUT, npz(**arrays)))


def test_the_models_of_array_and_deviations_are_what_was_written(bundle: Bundle, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    square = rng.normal(size=(1, 3, 3)).astype(np.float32)
    array = {
        "coupling": square + square.swapaxes(1, 2),
        **{name: rng.uniform(1, 2, 3).astype(np.float32) for name in CHANNEL_PARTS},
    }
    other = with_file(tmp_path / "a.edge", bundle, FILL_IN, save(array))
    config = replace(CONFIG, fill_sweeps=5, common_average=False)
    found = read_spatial_model(other, config)
    for name, part in array.items():
        np.testing.assert_array_equal(getattr(found, name), part)
    assert (found.sweeps, found.common_average) == (5, False)
    tables = {name: rng.uniform(size=(4, OUTPUTS)).astype(np.float32) for name in ("at_rest", "by_speed")}
    tables |= {name: rng.uniform(size=OUTPUTS).astype(np.float32) for name in ("center", "weight")}
    deviations = read_deviation_model(
        with_file(tmp_path / "b.edge", bundle, DEVIATION, save(tables)), SHAPE.channels, SHAPE.outputs
    )
    for name, part in tables.items():
        np.testing.assert_array_equal(getattr(deviations, name), part)


CHANNEL_PARTS = ("scale", "inverse_scale", "gain")


@pytest.mark.parametrize(
    ("name", "tensor", "change", "says"),
    [
        (FILL_IN, "coupling", lambda x: x.astype(np.float64), "'coupling' does not fit"),
        (FILL_IN, "coupling", lambda x: x[:, :2], "'coupling' does not fit"),
        (FILL_IN, "coupling", lambda x: np.concatenate([x, x]), "'coupling' does not fit"),
        (FILL_IN, "coupling", lambda x: x + np.triu(np.ones_like(x), 1), "does not describe an array"),
        (FILL_IN, "gain", lambda x: x * np.float32(np.nan), "'gain' does not fit"),
        (FILL_IN, "gain", lambda x: -x, "does not describe an array"),
        (FILL_IN, "scale", lambda x: 0 * x, "does not describe an array"),
        (FILL_IN, "inverse_scale", None, "nothing of that name"),
        (DEVIATION, "at_rest", lambda x: x - 1, "holds a negative variance"),
        (DEVIATION, "by_speed", lambda x: x[1:], "'by_speed' does not fit"),
        (DEVIATION, "center", None, "nothing of that name"),
    ],
)
def test_models_that_do_not_fit_are_refused_by_name(
    bundle: Bundle, tmp_path: Path, name: str, tensor: str, change: Callable[[Any], Any] | None, says: str
) -> None:
    tensors = load(bundle.read(name))
    changed = {} if change is None else {tensor: change(tensors[tensor])}
    rest = {other: part for other, part in tensors.items() if other != tensor}
    other = with_file(tmp_path / "a.edge", bundle, name, save(rest | changed))
    with pytest.raises(BundleError) as caught:
        READERS[name](other)
    assert name in str(caught.value)
    assert says in str(caught.value)


@pytest.mark.parametrize("name", [FILL_IN, DEVIATION])
def test_a_bundle_without_them_is_refused_by_name(bundle: Bundle, tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError, match=name):
        READERS[name](with_file(tmp_path / "a.edge", bundle, name, None))


def test_a_reference_without_a_part_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    other = with_file(tmp_path / "a.edge", bundle, REFERENCE, npz(bins=np.ones((2, 3), np.float32)))
    with pytest.raises(BundleError, match=r"'reference\.npz' is damaged"):
        read_reference(other)


def test_four_bit_weights_are_read_as_int8_and_refused_by_name_where_they_are_none(
    bundle: Bundle, tmp_path: Path
) -> None:
    model = random_model(SHAPE, four=four_bit_parts(SHAPE))
    tensors = model.to_file()
    found = read_int8_model(with_file(tmp_path / "a.edge", bundle, INT8_WEIGHTS, save(tensors)), SHAPE)
    assert found.four == four_bit_parts(SHAPE)
    assert all(np.array_equal(found.tensors[name], array) for name, array in model.tensors.items())
    tensors["layers.0.wo.nibbles"] = np.zeros_like(tensors["layers.0.wo.nibbles"])  # -8 everywhere
    broken = with_file(tmp_path / "b.edge", bundle, INT8_WEIGHTS, save(tensors))
    with pytest.raises(BundleError, match=rf"'{INT8_WEIGHTS}': 'layers.0.wo' is not a four-bit matrix"):
        read_int8_model(broken, SHAPE)


def test_integers_of_another_student_are_refused_with_the_file(bundle: Bundle, tmp_path: Path) -> None:
    tensors = load(bundle.read(INT8_WEIGHTS))
    del tensors["embed.bias"]
    other = with_file(tmp_path / "a.edge", bundle, INT8_WEIGHTS, save(tensors))
    with pytest.raises(BundleError, match=rf"'{INT8_WEIGHTS}'.*lacks tensors"):
        read_int8_model(other, SHAPE)
    with pytest.raises(BundleError, match=INT8_WEIGHTS):
        read_int8_model(with_file(tmp_path / "b.edge", bundle, INT8_WEIGHTS, None), SHAPE)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("at_rest", lambda table: table[:-1], r"'at_rest' does not fit"),
        ("by_speed", lambda table: table.astype(np.float64), "'by_speed' does not fit"),
        ("center", lambda table: np.full_like(table, np.nan), "'center' does not fit"),
        ("weight", lambda table: np.full_like(table, np.inf), "'weight' does not fit"),
        ("weight", None, "'weight' does not fit"),
        ("at_rest", lambda table: -table, "negative variance"),
        ("by_speed", lambda table: -table - 1, "negative variance"),
        ("weight", lambda table: -table, "negative variance"),
    ],
)
def test_damaged_deviations_are_refused_by_name(
    bundle: Bundle, tmp_path: Path, name: str, change: Callable[[Any], Any] | None, says: str
) -> None:
    tables = load(bundle.read(DEVIATION))
    table = tables.pop(name)
    changed = tables if change is None else tables | {name: np.ascontiguousarray(change(table))}
    other = with_file(tmp_path / "a.edge", bundle, DEVIATION, save(changed))
    with pytest.raises(BundleError, match=rf"'{DEVIATION}'.*{says}"):
        read_deviation_model(other, SHAPE.channels, SHAPE.outputs)
    with pytest.raises(BundleError, match=DEVIATION):
        Decoder(other, "oracle")


def test_a_bundle_without_deviations_is_refused_by_name(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=f"no file '{DEVIATION}'"):
        read_deviation_model(with_file(tmp_path / "a.edge", bundle, DEVIATION, None), SHAPE.channels, SHAPE.outputs)


# ---------------------------------------------------------------- smoothing.safetensors


def smoothed(path: Path, bundle: Bundle, **changes: Any) -> Bundle:
    """Writes the bundle with a filter of its outputs, in which tensors are changed, or left out where they are None."""
    tensors = load(write_smoothing_file(draw_smoothing_model(OUTPUTS, 2))[SMOOTHING]) | changes
    kept = {name: np.ascontiguousarray(array) for name, array in tensors.items() if array is not None}
    return with_file(path, bundle, SMOOTHING, save(kept))


def test_a_filter_of_the_outputs_is_read_back_and_is_none_where_there_is_none(bundle: Bundle, tmp_path: Path) -> None:
    model = draw_smoothing_model(OUTPUTS, 2)
    found = read_smoothing_model(smoothed(tmp_path / "a.edge", bundle), SHAPE)
    assert found is not None
    for name in ("keep", "gain", "raw_mean", "mean"):
        assert getattr(found, name).tobytes() == getattr(model, name).tobytes()
    assert read_smoothing_model(bundle, SHAPE) is None


def test_the_spike_student_has_a_filter_of_its_own(bundle: Bundle, tmp_path: Path) -> None:
    data = write_smoothing_file(draw_smoothing_model(OUTPUTS, 1))[SMOOTHING]
    other = with_file(tmp_path / "a.edge", bundle, SPIKE_FOLDER + SMOOTHING, data)
    assert read_smoothing_model(other, SHAPE) is None
    found, view = read_smoothing_model(other, SPIKE_SHAPE, SPIKE_FOLDER), open_spike_student(other)
    assert found is not None
    assert len(found.keep) == OUTPUTS
    assert read_smoothing_model(view, SPIKE_SHAPE) is not None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"keep": None}, "'keep' does not fit"),
        ({"keep": np.eye(4)}, "'keep' does not fit"),
        ({"keep": np.eye(4, dtype=np.float32)}, "its state never fades"),
        ({"keep": np.zeros((3, 3), np.float32), "gain": np.zeros((3, 2), np.float32)}, "a state of 3 values"),
        ({"gain": np.zeros((4, 3), np.float32)}, "'gain' does not fit"),
        ({"gain": np.full((4, 2), 1e30, np.float32)}, "'gain' holds a value"),
        ({"mean": np.full(2, np.nan, np.float32)}, "'mean' does not fit"),
        ({"raw_mean": np.full(2, 1e30, np.float32)}, "'raw_mean' holds a value"),
    ],
)
def test_a_filter_that_no_engine_may_run_is_refused_by_name(
    bundle: Bundle, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    other = smoothed(tmp_path / "a.edge", bundle, **changes)
    with pytest.raises(BundleError) as caught:
        read_smoothing_model(other, SHAPE)
    assert SMOOTHING in str(caught.value)
    assert says in str(caught.value)
    with pytest.raises(BundleError, match=SMOOTHING):
        Decoder(other, "oracle")


def test_a_ridge_may_have_a_filter(bundle: Bundle, tmp_path: Path) -> None:
    tensors = {"weight": (OUTPUTS, 3, SHAPE.channels), "bias": (OUTPUTS,), "penalty": (1,)}
    plain = {name: np.ones(size, np.float32) for name, size in tensors.items()}
    smooth = load(write_smoothing_file(draw_smoothing_model(OUTPUTS, 1))[SMOOTHING])
    both = plain | {f"smoothing.{name}": array for name, array in smooth.items()}
    found = read_ridge(with_file(tmp_path / "a.edge", bundle, RIDGE, save(both)), SHAPE).smoothing
    assert found is not None
    assert found.keep.tobytes() == smooth["keep"].tobytes()
    assert read_ridge(with_file(tmp_path / "b.edge", bundle, RIDGE, save(plain)), SHAPE).smoothing is None
    del both["smoothing.gain"]
    with pytest.raises(BundleError, match=r"'smoothing\.gain' does not fit"):
        read_ridge(with_file(tmp_path / "c.edge", bundle, RIDGE, save(both)), SHAPE)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"metrics": [1]}, "'metrics'"),
        ({"metrics": {"deployed_r2": "good"}}, "metrics: 'deployed_r2'"),
        ({"gates": [{"name": "a"}]}, "gates: 'limit'"),
        ({"gates": [3]}, "'gates'"),
        ({"int8": {"weight_bytes": 1}}, "int8: 'state_bytes'"),
        ({"confidence": {"labelled_bins": 0.5}}, "confidence: 'labelled_bins'"),
        ({"confidence": {"labelled_bins": 1, "standard_error": "small"}}, "confidence: 'standard_error'"),
        ({"engine": 3}, "'engine'"),
        ({"group_delay_ms": True}, "'group_delay_ms'"),
        ({"smoothing_delay_ms": "long"}, "'smoothing_delay_ms'"),
        ({"smoothing": {"kind": 1}}, "smoothing: 'kind'"),
        ({"smoothing": {"kind": "kalman", "order": 1.5}}, "smoothing: 'order'"),
        ({"provenance": {"sessions": {"a": 1}}}, "provenance, sessions: 'a'"),
        ({"provenance": {"series": {"a": {"lfp": 1}}}}, "provenance, series, a: 'lfp'"),
        ({"session": {"id": "a", "start": 2024}}, "session: 'start'"),
        ({"channels": [{"id": "0", "label": 1}]}, "channels: 'label'"),
        ({"channels": [{"id": "0", "position": ["x"]}]}, "channels: 'position'"),
    ],
)
def test_a_key_of_the_manifest_with_another_type_is_refused_by_name(tmp_path: Path, change: dict, says: str) -> None:
    with pytest.raises(BundleError, match=rf"'manifest\.json'(, )?{says}|'manifest\.json': {says}"):
        write_bundle(tmp_path / "a.edge", manifest(**change), {})


@pytest.mark.parametrize(
    "change",
    [
        {"model": {**SHAPE.to_json(), "d": "eight"}},
        {"model": None},
        {"frontend": {**CONFIG.to_json(), "rate": "1/0"}},
        {"frontend": {**CONFIG.to_json(), "rate": "10/1"}},
        {"frontend": {**CONFIG.to_json(), "unknown": 1}},
        {"frontend": {**CONFIG.to_json(), "left_out": [1, 0]}},
        {"normalization": {"mean": ["a", "b", "c"], "std": [1, 1, 1]}},
        {"channel_ids": "abc"},
        {"outputs": [{"name": "x"}, {"name": "y"}]},
        {"outputs": 5},
    ],
)
def test_a_manifest_that_describes_no_decoder_is_refused(tmp_path: Path, change: dict) -> None:
    bundle = write_bundle(tmp_path / "a.edge", manifest(**change), {})
    with pytest.raises(BundleError, match=r"'manifest\.json'"):
        read_decoder_spec(bundle)
