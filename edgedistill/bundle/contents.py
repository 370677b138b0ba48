"""Parses the files of a bundle. A checked `Bundle` goes in, and frozen dataclasses come out.

Each file has one function here that parses it, and no other module knows its keys. Every function raises BundleError,
with the name of the file, where the file is missing, damaged, or does not hold what a build writes.
"""

from __future__ import annotations

import json
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors

from edgedistill.bundle.manifest import MANIFEST
from edgedistill.bundle.reading import FORMAT, Bundle
from edgedistill.config import StudentShape
from edgedistill.errors import BundleError, ConfigError
from edgedistill.frontend import FrontEndConfig, SpatialModel, Standardization, group_delay_ms, settling_bins
from edgedistill.limits import find_npz_fault
from edgedistill.numerics import Int8Model
from edgedistill.numerics.deviation import DeviationModel
from edgedistill.numerics.smoothing import SmoothingModel
from edgedistill.scratch import move

HOLDOUT, REFERENCE, RANGES = "holdout.npz", "reference.npz", "ranges.json"
_TABLES, _MAYBE = ("bins", "present", "there", "kinematics"), ("counts", "unobserved", "score_from")  # of a holdout
WEIGHTS, INT8_WEIGHTS = "student.safetensors", "student.int8.safetensors"
FILL_IN, DEVIATION, SMOOTHING = "fill_in.safetensors", "deviation.safetensors", "smoothing.safetensors"
SMOOTHING_TENSORS = ("keep", "gain", "raw_mean", "mean")
SPIKE_FOLDER = "subjects/spike-student/"
SPIKE_MODEL = SPIKE_FOLDER + "model.json"
TEACHER_FACTS = "subjects/teachers.json"
RIDGE, RIDGE_SMOOTHING = "subjects/ridge.safetensors", "smoothing."  # the second begins names of tensors in the first

Floats = npt.NDArray[np.float32]
Arrays = dict[str, npt.NDArray[Any]]

_BUILT_BEFORE = {  # by format
    1: "it was built before lost channels were filled in, with other filters and another common average",
    2: "it was built before outputs were smoothed, and its deviations are those of outputs that are not",
}

_DAMAGED = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, ArithmeticError, RuntimeError, MemoryError),
    *(zipfile.BadZipFile, zlib.error),
)


def require_current_format(bundle: Bundle) -> None:
    """Raises BundleError for a bundle of an older format, which can be inspected and nothing else."""
    if bundle.manifest.format == FORMAT:
        return
    raise BundleError(
        f"{bundle.path}: a bundle of an older format is no longer decoded",
        got=f"format {bundle.manifest.format}, {bundle.manifest.created_by or 'by an unknown version'}",
        expected=f"format {FORMAT}",
        causes=(_BUILT_BEFORE[bundle.manifest.format],),
        next_step=f"edgedistill build with its recordings, which edgedistill inspect {bundle.path} --json lists",
    )


# ---------------------------------------------------------------- manifest.json: the decoder


@dataclass(frozen=True)
class Normalization:
    """Holds the statistics of the z-score, one for each number in a bin. A std of 0 makes it 0 in every bin."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class DecoderSpec:
    """Holds everything that fixes what the decoder takes and returns, except for its weights."""

    name: str
    sha256: str  # of the manifest, which holds the hash of every file
    shape: StudentShape
    front_end: FrontEndConfig
    normalization: Normalization  # (I,) in microvolts for the slow LFP, in units of the logarithm for power
    channel_ids: tuple[str, ...]  # order of the columns of a frame
    output_names: tuple[str, ...]
    output_units: tuple[str, ...]
    group_delay_ms: float  # of the front end
    warmup_bins: int  # bins until the student has seen its receptive field and the filters have settled


def read_decoder_spec(bundle: Bundle) -> DecoderSpec:
    """Returns the decoder that the manifest describes. Raises BundleError where it is incomplete or inconsistent."""
    where, found = f"{bundle.path}: '{MANIFEST}'", bundle.manifest.decoder
    try:
        shape = _shape(found["model"], f"{where}, model")
        front_end = FrontEndConfig.from_json(_object(found["frontend"]))
        outputs = [_object(output) for output in _list(found["outputs"])]
        spec = DecoderSpec(
            name=bundle.manifest.name,
            sha256=bundle.sha256,
            shape=shape,
            front_end=front_end,
            normalization=_normalization(found["normalization"]),
            channel_ids=tuple(map(str, _list(found["channel_ids"]))),
            output_names=tuple(str(output["name"]) for output in outputs),
            output_units=tuple(str(output["unit"]) for output in outputs),
            group_delay_ms=group_delay_ms(front_end),
            warmup_bins=shape.receptive_field + settling_bins(front_end),
        )
    except ConfigError as error:
        raise BundleError(f"{where}, frontend: {error.what}", got=error.got, expected=error.expected) from error
    except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise BundleError(f"{where} does not describe a decoder", got=repr(error)) from error
    if not spec.name:
        raise BundleError(f"{where} does not describe a decoder", got="no name")
    statistics = spec.normalization
    channels = {front_end.channels, len(spec.channel_ids)}
    channels |= {len(bundle.manifest.channels)} if bundle.manifest.channels is not None else set()
    inputs = {front_end.inputs, len(statistics.mean), len(statistics.std)}
    if len(channels) > 1 or inputs != {shape.channels} or len(spec.output_names) != shape.outputs:
        raise BundleError(
            f"{where} contradicts itself",
            got=f"{sorted(channels)} channels, {sorted(inputs)} inputs, {len(spec.output_names)} outputs",
            expected=f"one number of channels, {shape.channels} inputs and {shape.outputs} outputs, as its model has",
        )
    return spec


# ---------------------------------------------------------------- safetensors


def read_tensors(bundle: Bundle, name: str) -> Arrays:
    """Returns the tensors of one safetensors file."""
    data = bundle.read(name)
    try:
        return load_safetensors(data)
    except (SafetensorError, *_DAMAGED) as error:
        raise BundleError(f"{bundle.path}: '{name}' is not a safetensors file", got=error) from error


def read_int8_model(bundle: Bundle, shape: StudentShape) -> Int8Model:
    """Returns the INT8 student. Raises BundleError if there is none, or if its tensors do not fit the shape."""
    tensors = read_tensors(bundle, INT8_WEIGHTS)
    try:
        return Int8Model.from_file(shape, tensors)
    except BundleError as error:
        what = f"{bundle.path}: '{INT8_WEIGHTS}': {error.what}"
        raise BundleError(what, got=error.got, expected=error.expected) from error


def read_spatial_model(bundle: Bundle, front_end: FrontEndConfig) -> SpatialModel:
    """Returns the model of the array. Raises BundleError where it is missing, damaged or of an older format."""
    channels, vectors = front_end.channels, dict.fromkeys(("scale", "inverse_scale", "gain"), (front_end.inputs,))
    shapes: dict[str, tuple[int, ...]] = {"coupling": (front_end.features, channels, channels), **vectors}
    found = _read_floats(bundle, FILL_IN, shapes)
    unsound = ~(found["scale"] > 0) | ~(found["inverse_scale"] > 0) | ~(found["gain"] >= 0)
    if unsound.any() or not np.array_equal(found["coupling"], found["coupling"].swapaxes(1, 2)):
        expected = "a symmetric coupling, positive scales, and gains of at least 0"
        raise BundleError(f"{bundle.path}: '{FILL_IN}' does not describe an array", expected=expected)
    return SpatialModel(**found, sweeps=front_end.fill_sweeps, common_average=front_end.common_average)


def read_deviation_model(bundle: Bundle, channels: int, outputs: int) -> DeviationModel:
    """Returns the model of the outputs' deviations. Raises BundleError as `read_spatial_model` does."""
    tables = dict.fromkeys(("at_rest", "by_speed"), (channels + 1, outputs))
    found = _read_floats(bundle, DEVIATION, {**tables, **dict.fromkeys(("center", "weight"), (outputs,))})
    if any((found[name] < 0).any() for name in ("at_rest", "by_speed", "weight")):
        raise BundleError(f"{bundle.path}: '{DEVIATION}' holds a negative variance", expected="at least 0")
    return DeviationModel(**found)


def read_smoothing_model(bundle: Bundle, shape: StudentShape, folder: str = "") -> SmoothingModel | None:
    """Returns the filter of the outputs of the student in `folder`, or None where they are not smoothed.

    Raises BundleError as `read_spatial_model` does.
    """
    require_current_format(bundle)
    if (name := folder + SMOOTHING) not in bundle.names:
        return None
    return _pick_smoothing(bundle, name, read_tensors(bundle, name), shape.outputs)


def _pick_smoothing(
    bundle: Bundle, name: str, tensors: Mapping[str, npt.NDArray[Any]], outputs: int, prefix: str = ""
) -> SmoothingModel:
    """Returns the filter among a file's tensors, whose names begin with `prefix`."""
    keep = tensors.get(prefix + "keep")
    states = max(1, len(keep)) if keep is not None and keep.ndim == 2 else 1
    sizes = ((states, states), (states, outputs), (outputs,), (outputs,))
    names = [prefix + tensor for tensor in SMOOTHING_TENSORS]
    found = _pick_floats(bundle, name, tensors, dict(zip(names, sizes, strict=True)))
    model = SmoothingModel(*(found[tensor] for tensor in names))
    if (fault := model.find_fault(outputs)) is not None:
        raise BundleError(f"{bundle.path}: '{name}' does not describe a filter of outputs", got=fault)
    return model


def read_standardization(bundle: Bundle, spec: DecoderSpec) -> Standardization:
    """Returns how a bundle turns what its front end gives into its models' input. Raises as `read_spatial_model`."""
    mean, std = np.array(spec.normalization.mean), np.array(spec.normalization.std)
    return Standardization(mean, std, read_spatial_model(bundle, spec.front_end))


def _read_floats(bundle: Bundle, name: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Floats]:
    """Returns the finite float32 tensors of a file that are named in `shapes`."""
    require_current_format(bundle)
    return _pick_floats(bundle, name, read_tensors(bundle, name), shapes)


def _pick_floats(
    bundle: Bundle, name: str, tensors: Mapping[str, npt.NDArray[Any]], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Floats]:
    """Returns those of a file's tensors that are named in `shapes`. Raises BundleError where one does not fit."""
    for tensor, shape in shapes.items():
        found = tensors.get(tensor)
        if found is None or found.dtype != np.float32 or found.shape != shape or not np.isfinite(found).all():
            got = "nothing of that name" if found is None else f"{found.dtype} {found.shape}"
            raise BundleError(
                f"{bundle.path}: '{name}': '{tensor}' does not fit", got=got, expected=f"finite float32 {shape}"
            )
    return {tensor: tensors[tensor] for tensor in shapes}


# ---------------------------------------------------------------- holdout.npz


@dataclass(frozen=True, eq=False)
class Holdout:
    """Holds the stretch of data that was kept from training, with the input of the models and the true kinematics."""

    bins: Floats  # (T, I), input of the LFP models
    present: Floats  # (T, I), standardized features before fill-in and common average, 0 where they were not there
    there: npt.NDArray[np.bool_]  # (T, C), channels that were there
    counts: npt.NDArray[Any] | None  # (T, U), spikes
    kinematics: npt.NDArray[Any]  # (T, K), NaN where unknown
    score_from: int  # the first bin whose R² counts; those before it are the run-up
    unobserved: npt.NDArray[np.bool_] | None = None  # (T, U) where a unit was not observed; None: nowhere


def read_holdout(bundle: Bundle) -> Holdout:
    """Returns the holdout without its raw frames. Raises BundleError for a missing part or an older format."""
    require_current_format(bundle)
    with _npz(bundle, HOLDOUT) as lazy:
        stored = {name: move(lazy[name]) for name in (*_TABLES, *_MAYBE) if name in lazy}  # each is read once
        for name in _TABLES:
            if name not in stored or not stored[name].size or stored[name].dtype.kind not in "biuf":
                raise BundleError(f"{bundle.path}: '{HOLDOUT}' holds no '{name}'", got=sorted(lazy))
        counts = stored.get("counts")
        score_from = int(stored["score_from"]) if "score_from" in stored else 0
        bins, present = (stored.pop(name).astype(np.float32, copy=False) for name in ("bins", "present"))
        there, kinematics = stored["there"].astype(np.bool_, copy=False), stored["kinematics"]
        tables = bins.ndim == there.ndim == 2 and bins.shape == present.shape and len(bins) == len(there)
        if not tables or bins.shape[1] % max(1, there.shape[1]):
            got = f"bins {bins.shape}, present {present.shape}, there {there.shape}"
            raise BundleError(f"{bundle.path}: '{HOLDOUT}' contradicts itself", got=got)
        return Holdout(bins, present, there, counts, kinematics, score_from, stored.get("unobserved"))


def read_raw_frames(bundle: Bundle) -> Floats | None:
    """Returns the holdout's raw frames (n, C) in microvolts, or None where there are none.

    `read_holdout` leaves them out, because they take up to 64 MiB and few callers need them.
    """
    if HOLDOUT not in bundle.names:
        return None
    with _npz(bundle, HOLDOUT) as stored:
        return stored["frames"].astype(np.float32) if "frames" in stored else None


# ---------------------------------------------------------------- reference.npz


@dataclass(frozen=True, eq=False)
class Reference:
    """Holds a stretch of bins with the kinematics that the oracle decoded from them."""

    bins: Floats  # (T, I), input of the models
    kinematics: Floats  # (T, K)
    start: Arrays  # the student's state before the stretch, with the names that every engine uses
    end: Arrays  # the state after the stretch, with the same names


def read_reference(bundle: Bundle) -> Reference | None:
    """Returns the reference, or None where the bundle holds none."""
    if REFERENCE not in bundle.names:
        return None
    with _npz(bundle, REFERENCE) as stored:
        start, end = (
            {name.removeprefix(part): stored[name] for name in stored if name.startswith(part)}
            for part in ("start_", "state_")
        )
        return Reference(stored["bins"], stored["kinematics"], start, end)


# ---------------------------------------------------------------- subjects/


@dataclass(frozen=True)
class SpikeStudent:
    """Describes the spike student, as its `model.json` does."""

    shape: StudentShape
    normalization: Normalization | None  # of the counts, or None where raw counts are the input


def read_spike_student(bundle: Bundle) -> SpikeStudent:
    """Returns what the bundle says of its spike student."""
    where, found = f"{bundle.path}: '{SPIKE_MODEL}'", _json(bundle, SPIKE_MODEL)
    try:
        shape = _shape(_object(found)["model"], f"{where}, model")
        statistics = _object(found).get("normalization")
        return SpikeStudent(shape, _normalization(statistics) if statistics else None)
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{where} does not describe a model", got=repr(error)) from error


@dataclass(frozen=True)
class TeacherFacts:
    """Holds figures of one teacher graph, because a board has no `onnx` package to compute them with."""

    params: int
    window: int  # bins


def read_teacher_facts(bundle: Bundle) -> dict[str, TeacherFacts]:
    """Returns the figures of each teacher in the bundle, by the name under which a bench lists it."""
    try:
        found = _object(_json(bundle, TEACHER_FACTS)).items()
        facts = {name: _object(one) for name, one in found}
        return {name: TeacherFacts(_whole(one["params"]), _whole(one["window"])) for name, one in facts.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{bundle.path}: '{TEACHER_FACTS}' is damaged", got=repr(error)) from error


@dataclass(frozen=True, eq=False)
class Ridge:
    """Holds a lagged ridge that decodes the models' input, fitted on the same training block as the student."""

    weight: Floats  # (K, lags + 1, C), the newest bin first
    bias: Floats  # (K,)
    penalty: float  # for features of deviation 1, times the number of bins / 1e4
    smoothing: SmoothingModel | None = None  # of its outputs

    @property
    def lags(self) -> int:
        """Returns how many bins before the newest it reads."""
        return int(self.weight.shape[1]) - 1


def read_ridge(bundle: Bundle, shape: StudentShape) -> Ridge:
    """Returns the lagged ridge. Raises BundleError where the bundle holds none, or one for another student."""
    found = read_tensors(bundle, RIDGE)
    weight = found.get("weight")
    bins = max(1, weight.shape[1]) if weight is not None and weight.ndim == 3 else 1
    shapes = {"weight": (shape.outputs, bins, shape.channels), "bias": (shape.outputs,), "penalty": (1,)}
    tensors = _pick_floats(bundle, RIDGE, found, shapes)
    smoothing = None
    if any(name.startswith(RIDGE_SMOOTHING) for name in found):
        smoothing = _pick_smoothing(bundle, RIDGE, found, shape.outputs, RIDGE_SMOOTHING)
    return Ridge(tensors["weight"], tensors["bias"], float(tensors["penalty"][0]), smoothing)


# ---------------------------------------------------------------- ranges.json


@dataclass(frozen=True)
class RangeRow:
    """Describes how one activation was quantized."""

    name: str
    range: float  # largest magnitude that eight bits represent
    clipped: float  # share of the values beyond that range
    noise_db: float  # ratio of signal to quantization noise


def read_range_table(bundle: Bundle) -> tuple[RangeRow, ...]:
    """Returns the table of the calibration, which is empty where the bundle has none."""
    if RANGES not in bundle.names:
        return ()
    try:
        rows = [_object(row) for row in _list(_object(_json(bundle, RANGES)).get("table") or [])]
        whole = [row for row in rows if {"name", "range", "clipped", "noise_db"} <= row.keys()]
        return tuple(
            RangeRow(str(row["name"]), *(_number(row[key]) for key in ("range", "clipped", "noise_db")))
            for row in whole
        )
    except (TypeError, ValueError) as error:
        raise BundleError(f"{bundle.path}: '{RANGES}' is damaged", got=repr(error)) from error


# ---------------------------------------------------------------- helpers


@contextmanager
def _npz(bundle: Bundle, name: str) -> Iterator[Mapping[str, npt.NDArray[Any]]]:
    """Opens an .npz file. Its arrays are read when they are accessed."""
    try:
        with bundle.open_copy(name) as file:
            if (fault := find_npz_fault(file)) is not None:
                raise BundleError(f"{bundle.path}: '{name}' is not read", got=fault)
            file.seek(0)
            with np.load(file, allow_pickle=False) as stored:
                yield stored
    except _DAMAGED as error:
        raise BundleError(f"{bundle.path}: '{name}' is damaged", got=error) from error


def _json(bundle: Bundle, name: str) -> object:
    try:
        found: object = json.loads(bundle.read(name))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{bundle.path}: '{name}' is not JSON", got=error) from error
    return found


def _shape(found: object, where: str) -> StudentShape:
    try:
        return StudentShape.from_json(_object(found), where)
    except ConfigError as error:
        raise BundleError(error.what, got=error.got, expected=error.expected) from error


def _normalization(found: object) -> Normalization:
    parts = (_object(found)[name] for name in ("mean", "std"))
    return Normalization(*(tuple(_number(value) for value in _list(part)) for part in parts))


def _object(found: object) -> Mapping[str, object]:
    if not isinstance(found, dict):
        raise TypeError(f"{found!r} where an object was expected")
    return found


def _list(found: object) -> list[object]:
    if not isinstance(found, list):
        raise TypeError(f"{found!r} where a list was expected")
    return found


def _number(found: object) -> float:
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        raise TypeError(f"{found!r} where a number was expected")
    if abs(found) > sys.float_info.max and isinstance(found, int):
        raise ValueError("a whole number beyond every float")
    return float(found)


def _whole(found: object) -> int:
    if type(found) is not int:
        raise TypeError(f"{found!r} where a whole number was expected")
    return found
