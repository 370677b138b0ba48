"""Runs `edgedistill adapt`, which makes a bundle for another day of the same array without any training.

A bundle and a recording go in. A bundle with the statistics of that day comes out. The student stays as it is, down to
its integers. With labels its read-out alone is fitted again.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import monotonic

import numpy as np
import torch

from edgedistill import __version__
from edgedistill.bundle import Bundle, open_bundle, refuse_foreign
from edgedistill.bundle.contents import (
    HOLDOUT,
    RANGES,
    REFERENCE,
    RIDGE,
    SMOOTHING,
    WEIGHTS,
    DecoderSpec,
    Ridge,
    read_decoder_spec,
    read_deviation_model,
    read_int8_model,
    read_ridge,
    read_smoothing_model,
    read_tensors,
)
from edgedistill.bundle.manifest import Channel, Smoothing
from edgedistill.compile.c.toolchain import find_toolchain
from edgedistill.compile.engines import require_engine_fits
from edgedistill.data.lfp.electrodes import Electrode
from edgedistill.data.session import BINS_PER_S
from edgedistill.errors import BundleError, EngineError, OutputError
from edgedistill.frontend import FrontEndConfig, group_delay_ms, require_follow
from edgedistill.measure.score import score_kinematics
from edgedistill.models.student import student_from_tensors
from edgedistill.numerics import Int8Model, Oracle
from edgedistill.numerics.smoothing import SmoothingModel
from edgedistill.pipeline.another_day import AnotherDay, StretchOptions, read_another_day
from edgedistill.pipeline.assembled import describe_channel
from edgedistill.pipeline.channel_files import write_channel_files, write_smoothing_file
from edgedistill.pipeline.confidence import CalibratedDeviations, calibrate_deviations
from edgedistill.pipeline.early_checks import require_writable
from edgedistill.pipeline.graph_checks import compute_reference, holdout_stretch
from edgedistill.pipeline.holdout_files import holdout_bins, open_npz, pack_npz
from edgedistill.pipeline.quantized import Int8Student
from edgedistill.pipeline.result import Metrics
from edgedistill.pipeline.smoothed import (
    decode_session,
    describe_filter,
    find_delay_ms,
    fit_for_session,
    smooth_ridge,
)
from edgedistill.pipeline.student_files import Files, Subject, Verdicts, write_ridge, write_subject
from edgedistill.pipeline.written_bundle import BundleContents, Facts, WrittenBundle, write_and_judge
from edgedistill.quantization.calibration.ranges import Ranges
from edgedistill.quantization.deployment import QuantizedStudent, refit_readout, score_stream
from edgedistill.reserved import reserving
from edgedistill.scratch import with_scratch
from edgedistill.target import Gate, Target, load_own_target, load_target, require_buildable
from edgedistill.training.baselines import fit_bundle_ridge
from edgedistill.training.output_filter import KALMAN, NONE
from edgedistill.training.student_tasks import score_student

SUBJECTS = "subjects/"
WORSE = 0.01  # in R²; less is chance


@dataclass(frozen=True)
class AdaptOptions:
    """Holds the options of `edgedistill adapt`."""

    bundle: Path
    out: Path
    stretch: StretchOptions
    follow_s: float | None = None  # time constant of statistics that follow the signal; None: as in the bundle
    target: str | None = None  # None: the bundle's own


@dataclass(frozen=True, eq=False)
class AdaptResult:
    """Says where the bundle is, what it was adapted to and how good it is."""

    bundle: Path
    target: str
    session: str
    used_s: tuple[float, float]  # the stretch, counted from the first frame
    kept: tuple[str, ...]  # ids of channels that stay as the bundle has them
    before_r2: float | None  # of the bundle as it was, in INT8, on the same bins as `metrics`
    metrics: Metrics
    unscored: str | None  # why there is no R²
    written: WrittenBundle
    read: dict[str, object]  # how the recording was read
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    seconds: float

    @property
    def gates(self) -> tuple[Gate, ...]:
        """Returns the gates of the target."""
        return self.written.gates

    @property
    def lacking(self) -> EngineError | None:
        """Returns why the engine is only prepared, or None where it is compiled or needs no compiling."""
        return self.written.compiled.lacking if self.written.compiled else None

    @property
    def next_step(self) -> str:
        """Returns the command to run next."""
        return self.lacking.next_step or "" if self.lacking else f"edgedistill bench {self.bundle}"

    def to_json(self) -> dict[str, object]:
        """Returns the answer of `edgedistill adapt --json`, which docs/json.md describes."""
        return {
            "bundle": str(self.bundle),
            "target": self.target,
            "session": self.session,
            "used_s": list(self.used_s),
            "kept_channels": list(self.kept),
            "before_r2": self.before_r2,
            "metrics": self.metrics,
            "unscored": self.unscored,
            "gates": [asdict(gate) for gate in self.gates],
            "graphs": {name: verdict.to_json() for name, verdict in self.written.graphs.items()},
            "read": [self.read],
            "notes": list(self.notes),
            "warnings": list(self.warnings),
            "not_compiled": self.lacking.what if self.lacking else None,
            "seconds": self.seconds,
            "next_step": self.next_step,
        }


@reserving(lambda options: (options.out,))
@with_scratch(lambda options: options.out.parent)
def adapt_bundle(options: AdaptOptions) -> AdaptResult:
    """Writes a bundle for another day to `options.out`, and says what was found.

    Raises OutputError for a path that cannot take it, BundleError for a bundle that cannot be adapted, and as
    `read_another_day` does.
    """
    start = monotonic()
    bundle = open_bundle(options.bundle)
    target = check_options(options, bundle)
    day = read_another_day(bundle, options.stretch)
    spec = read_decoder_spec(bundle)
    model = read_int8_model(bundle, spec.shape)
    files, graphs, outputs = write_adapted_files(bundle, spec, model, day, options.stretch.labels)
    facts = describe_adapted(bundle, spec, day, options) | outputs.describe(spec.front_end)
    why = {} if day.unscored is None else dict.fromkeys(("deployed_r2", "int8_r2_drop"), day.unscored)
    stretch = holdout_stretch(day.session, spec.shape)
    with open_npz(holdout_bins(day.session, stretch, day.kinematics) | day.frames) as holdout:
        whole = files | {HOLDOUT: holdout}
        written = write_and_judge(BundleContents(options.out, target, whole, graphs, facts, why=why))
    before = score_before(model, read_smoothing_model(bundle, spec.shape), day)
    return AdaptResult(
        bundle=options.out,
        target=target.name,
        session=day.session.id,
        used_s=(day.stretch.start / BINS_PER_S, day.stretch.stop / BINS_PER_S),
        kept=tuple(day.bins.channel_ids[column] for column in day.kept),
        before_r2=before,
        metrics=written.metrics,
        unscored=day.unscored,
        written=written,
        read=day.bins.describe_reading(),
        notes=day.bins.notes,
        warnings=(*day.warnings, *warn_of_result(day, before, written.metrics)),
        seconds=monotonic() - start,
    )


def check_options(options: AdaptOptions, bundle: Bundle) -> Target:
    """Returns the target of the new bundle. Raises an EdgeDistillError for options that cannot be followed."""
    out = options.out
    if out.suffix == ".zip":
        raise OutputError(
            f"{out}: an adapted bundle is a folder, because a zip cannot hold a compiled engine",
            next_step=f"write --out {out.with_suffix('.edge')}",
        )
    if out.resolve() == options.bundle.resolve():
        raise OutputError(
            f"{out}: this is the bundle itself, which a later day needs",
            next_step="choose another --out, such as one with the name of the day",
        )
    require_writable(out)
    refuse_foreign(out)
    if options.follow_s is not None:
        require_follow(options.follow_s)
    if bundle.manifest.target is None and options.target is None:
        raise BundleError(
            f"{bundle.path}: the bundle does not say what it was built for", next_step="add --target NAME"
        )
    target = load_target(options.target) if options.target else load_own_target(bundle.manifest.target)
    require_buildable(target)
    if target.engine == "c":
        find_toolchain(target)
    spec = read_decoder_spec(bundle)
    require_engine_fits(target, spec.shape.window, read_int8_model(bundle, spec.shape).keep)
    return target


# ---------------------------------------------------------------- files


@dataclass(frozen=True, eq=False)
class AdaptedOutputs:
    """Holds what is done with the outputs of the student: how they are smoothed, and their deviations."""

    smoothing_model: SmoothingModel | None
    smoothing: Smoothing | None  # what the manifest says of it
    deviations: CalibratedDeviations

    def describe(self, front_end: FrontEndConfig) -> Facts:
        """Returns the keys of `manifest.json` about the outputs."""
        return {
            "confidence": self.deviations.describe(),
            "smoothing": None if self.smoothing is None else self.smoothing.to_json(),
            "smoothing_delay_ms": find_delay_ms(self.smoothing_model, front_end),
        }


def keep_outputs(bundle: Bundle, spec: DecoderSpec) -> AdaptedOutputs:
    """Returns what the bundle does with its outputs."""
    found = read_deviation_model(bundle, spec.front_end.channels, spec.shape.outputs)
    deviations = CalibratedDeviations(found, bundle.manifest.confidence)
    return AdaptedOutputs(read_smoothing_model(bundle, spec.shape), bundle.manifest.smoothing, deviations)


def fit_new_outputs(fitted: Int8Model, day: AnotherDay, kept: AdaptedOutputs) -> AdaptedOutputs:
    """Returns the same for a student with a new read-out. A bundle that does not smooth its outputs goes on so."""
    model, smoothing = kept.smoothing_model, kept.smoothing
    if model is not None:
        output_filter = fit_for_session(decode_session(fitted, day.session), day.session)
        model, smoothing = output_filter.model, describe_filter(output_filter)
    deviations = calibrate_deviations(fitted, day.session, model, stop=day.session.split.validation.stop)
    return AdaptedOutputs(model, smoothing, deviations)


def write_adapted_files(
    bundle: Bundle, spec: DecoderSpec, model: Int8Model, day: AnotherDay, labels: bool
) -> tuple[Files, Verdicts, AdaptedOutputs]:
    """Returns the new bundle's files without its holdout, verdicts on its step graphs, and what is done with outputs.

    Models on spikes are left out, because they know the units of the bundle's own session only. The lagged ridge reads
    the same bins as the student, and is treated as its read-out is.
    """
    names = [name for name in bundle.names if name == RIDGE or not name.startswith((SUBJECTS, HOLDOUT))]
    files = {name: bundle.read(name) for name in names}
    graphs = {name: one for name, one in bundle.manifest.graphs.items() if not name.startswith(SUBJECTS)}
    outputs = keep_outputs(bundle, spec)
    if labels:
        subject = fit_new_readout(bundle, spec, model, day)
        again, _, graphs = write_subject(subject, day.session, "lfp")
        fitted = subject.int8.quantized.model
        files |= again | {REFERENCE: pack_npz(compute_reference(fitted, day.session))}
        outputs = fit_new_outputs(fitted, day, outputs)
        if RIDGE in files:
            files[RIDGE] = fit_new_ridge(read_ridge(bundle, spec.shape), day)
    files.pop(SMOOTHING, None)
    files |= write_smoothing_file(outputs.smoothing_model)
    files |= write_channel_files(day.session.standardization.spatial, outputs.deviations.model)
    return files, graphs, outputs


def fit_new_readout(bundle: Bundle, spec: DecoderSpec, model: Int8Model, day: AnotherDay) -> Subject:
    """Returns the student of the bundle with a read-out that is fitted on the labels of the day."""
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in read_tensors(bundle, WEIGHTS).items()}
    student = student_from_tensors(spec.shape, tensors, day.session.id)
    readout, _ = score_student(student, "deployed", day.session)
    fitted = refit_readout(model, day.session, "lfp")
    ranges = Ranges.from_json(json.loads(bundle.read(RANGES)), f"{bundle.path}: '{RANGES}'")
    return Subject(
        student, readout, Int8Student(ranges, QuantizedStudent(fitted, score_stream(fitted, day.session, "lfp")))
    )


def fit_new_ridge(ridge: Ridge, day: AnotherDay) -> bytes:
    """Returns the file of a lagged ridge that is fitted on the labels of the day, with as many lags as the bundle's.

    The filter of its outputs is fitted as well, if it has one.
    """
    session = day.session
    channels = session.standardization.spatial.channels
    fitted = fit_bundle_ridge(session.inputs("lfp").numpy(), channels, session, [ridge.lags])
    return write_ridge(fitted, smooth_ridge(fitted, session, NONE if ridge.smoothing is None else KALMAN))


# ---------------------------------------------------------------- manifest


def describe_adapted(bundle: Bundle, spec: DecoderSpec, day: AnotherDay, options: AdaptOptions) -> Facts:
    """Returns the keys of `manifest.json` that are known before the bundle is compiled and measured."""
    found, bins, new = bundle.manifest, day.bins, day.session.standardization
    follow_s = spec.front_end.follow_s if options.follow_s is None else options.follow_s
    assert bins.frontend is not None
    config = replace(bins.frontend, follow_s=follow_s)
    outputs = zip(spec.output_names, spec.output_units, strict=True)
    known = found.channels or [Channel(name) for name in spec.channel_ids]
    return {
        "name": options.out.stem,
        "created_by": f"edgedistill {__version__}",
        "model": spec.shape.to_json(),
        "frontend": config.to_json(),
        "normalization": {"mean": new.mean.tolist(), "std": new.std.tolist()},
        "channel_ids": list(bins.channel_ids),
        "channels": [
            join_channel(electrode, channel) for electrode, channel in zip(bins.electrodes, known, strict=True)
        ],
        "outputs": [{"name": name, "unit": unit} for name, unit in outputs],
        "session": {"id": bins.session_id, "subject": bins.subject_id, "start": bins.session_start},
        "preset": found.preset,
        "recipe": found.recipe,
        "int8": None if found.int8 is None else asdict(found.int8),
        "provenance": describe_origin(bundle, day, options),
        "group_delay_ms": group_delay_ms(config),
    }


def join_channel(electrode: Electrode, known: Channel) -> dict[str, object]:
    """Returns the manifest's entry for a channel. What the recording does not say of it stays as the bundle has it."""
    found = describe_channel(electrode)
    before = {"label": known.label, "position": None if known.position is None else list(known.position)}
    return {name: before[name] if value is None else value for name, value in found.items()}


def describe_origin(bundle: Bundle, day: AnotherDay, options: AdaptOptions) -> Facts:
    """Returns what the manifest says of the origin: the sessions of the student, and the bundle before."""
    found, bins, stretch = bundle.manifest, day.bins, day.stretch
    own: Facts = {} if found.provenance is None else found.provenance.to_json()
    sessions = {} if found.provenance is None else dict(found.provenance.sessions)
    series = {} if found.provenance is None else dict(found.provenance.series)
    namesake = sessions.pop(bins.session_id, None)
    if namesake not in (None, bins.sha256):  # another file with the id of this day
        sessions[f"{bins.session_id} of {found.name}"] = namesake
    return {
        **own,
        "sessions": {**sessions, bins.session_id: bins.sha256},
        "series": {**series, bins.session_id: dict(bins.series)},
        "adapted_from": {
            "name": found.name,
            "sha256": bundle.sha256,
            "session": found.session.id if found.session else None,
            "from_s": stretch.start / BINS_PER_S,
            "to_s": stretch.stop / BINS_PER_S,
            "labels": options.stretch.labels,
            "kept_channels": [bins.channel_ids[column] for column in day.kept],
        },
    }


# ---------------------------------------------------------------- what it is worth


def score_before(model: Int8Model, smoothing: SmoothingModel | None, day: AnotherDay) -> float | None:
    """Returns the R² of the bundle as it was on the test block of the day, or None where nothing can be scored."""
    bins, held, test = day.bins, holdout_stretch(day.session, model.shape), day.session.split.test
    if day.unscored is not None or bins.lfp is None or bins.bad is None:
        return None
    raw = Oracle(model).run(day.old.inputs(bins.lfp[held], bins.bad[held]))
    guess = (raw if smoothing is None else smoothing.run(raw))[test.start - held.start :]
    return score_kinematics(guess, day.kinematics[test], bins.path).r2


def warn_of_result(day: AnotherDay, before: float | None, metrics: Metrics) -> list[str]:
    """Returns warnings about channels that nothing was learned of, and about a decoder that is worse than before."""
    warnings, after = [], metrics.get("int8_r2")
    if day.kept:
        names = ", ".join(day.bins.channel_ids[column] for column in day.kept)
        warnings.append(
            f"{len(day.kept)} of {len(day.bins.channel_ids)} channels show too little in the stretch, and stay as the "
            f"bundle has them: {names}"
        )
    if before is not None and after is not None and after < before - WORSE:
        warnings.append(
            "the adapted decoder is worse than the bundle as it was, on what follows the stretch: "
            f"R² {after:.3f} against {before:.3f}"
        )
    return warnings
