"""Holds what all stages of one run share: the cache, the preset, the seed, and the origin of the data."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path

import numpy as np
from torch import Tensor

from edgedistill.config import NO_BANDS, Preset, TrainingConfig, load_preset
from edgedistill.data.bins import SessionBins
from edgedistill.errors import ConfigError, did_you_mean
from edgedistill.pipeline.cache import Cache
from edgedistill.pipeline.inputs import Skipped
from edgedistill.scratch import split_rows
from edgedistill.training.batches import TrainingSession, describe_training_device
from edgedistill.training.fill_in import LfpSource

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int, float, float], None]  # stage, step, steps, loss, learning rate
StageProgress = Callable[[int, int, float, float], None]  # step, steps, loss, learning rate of one stage
BAND_CHOICES = ("preset", "none")  # of --bands
PACKAGES = ("torch", "numpy", "scipy", "onnx", "onnxruntime")


@dataclass(frozen=True)
class Provenance:
    """Names the files that a run read, and the versions of the packages it computed with."""

    sessions: Mapping[str, str]  # id -> SHA-256 of its file
    versions: Mapping[str, str]  # package -> version
    readings: tuple[dict[str, object], ...] = ()  # how each session was read, see `SessionBins.describe_reading`
    training: Mapping[str, object] = field(default_factory=dict)  # see `describe_training_device`; empty: not known
    skipped: tuple[dict[str, object], ...] = ()  # files that were left out, see `Skipped.to_json`

    def to_json(self) -> dict[str, object]:
        """Returns the keys as they stand in a manifest and in a model's facts."""
        series = {str(reading["session"]): reading["series"] for reading in self.readings}
        found: dict[str, object] = {"sessions": dict(self.sessions), "series": series, "versions": dict(self.versions)}
        return found | ({"training": dict(self.training)} if self.training else {})


@dataclass(frozen=True)
class Run:
    """Holds what all stages of one run share."""

    cache: Cache
    preset: Preset
    seed: int
    provenance: Provenance
    progress: Progress | None = None
    trials: int = 1  # of each student's search; 1: the preset as it is

    @property
    def trained_on(self) -> dict[str, object]:
        """Returns what trains here, which is part of a stage's key because the manifest names it."""
        return dict(self.provenance.training)

    def progress_of(self, stage: str) -> StageProgress | None:
        """Returns the progress callback of one stage, or None where nobody watches."""
        if self.progress is None:
            return None
        show = self.progress
        return lambda step, steps, loss, rate: show(stage, step, steps, loss, rate)


def provenance_of(bins: Sequence[SessionBins], skipped: Sequence[Skipped] = ()) -> Provenance:
    """Returns the provenance of a run on these sessions. Logs a line where a training cannot be repeated bit by bit."""
    versions = {package: metadata.version(package) for package in PACKAGES}
    readings = tuple(b.describe_reading() for b in bins)
    training = describe_training_device()
    if not training["repeatable"]:
        text = "training on %s: the same training would end with other last bits; stages that are kept are found again"
        logger.info(text, training["device"])
    left_out = tuple(one.to_json() for one in skipped)
    return Provenance({b.session_id: b.sha256 for b in bins}, versions, readings, training, left_out)


def choose_preset(name_or_path: str | Path, steps: int | None, bands: str = "preset") -> Preset:
    """Returns a preset with every training limited to `steps`, without band power where `bands` is "none".

    Raises ConfigError.
    """
    if bands not in BAND_CHOICES:
        raise ConfigError(f"unknown bands '{bands}'", expected=did_you_mean(bands, BAND_CHOICES))
    preset = shorten_preset(load_preset(name_or_path), steps)
    return preset if bands == "preset" else replace(preset, band_power=NO_BANDS)


def shorten_preset(preset: Preset, steps: int | None) -> Preset:
    """Returns the preset with every training limited to `steps` optimizer steps."""
    if steps is None:
        return preset

    def capped(config: TrainingConfig) -> TrainingConfig:
        few = min(steps, config.steps)
        return replace(config, steps=few, eval_every=max(1, min(config.eval_every, few // 4)))

    return replace(preset, training=capped(preset.training), teacher_training=capped(preset.teacher_training))


def session_inputs(session: TrainingSession, *parts: str) -> list[object]:
    """Returns what a stage uses from a session, as JSON, for the key of that stage in the cache.

    `parts` are some of "lfp", "spikes", "counts" and "behavior". The key holds hashes of the numbers and not of the
    file, because one file gives other numbers with another behavior series, line frequency or gap between the blocks.
    """
    split = session.split
    blocks = [[block.start, block.stop] for block in (split.train, split.validation, split.test)]
    used = {part: describe_part(session, part) for part in parts}
    return [session.id, session.array, session.settled, blocks, used, sha256_of(session.valid)]


def describe_part(session: TrainingSession, part: str) -> list[object] | None:
    """Returns hashes of one part of a session and of the statistics it was made with, or None where it has none.

    Behavior that is scaled to the same numbers may be in another unit, and the LFP is damaged in training before it is
    filled in. What stands behind the numbers therefore counts as well.
    """
    values: Tensor | None = getattr(session, part)
    if values is None:
        return None
    if part == "lfp":
        return [sha256_of(values), describe_source(session.source)]
    statistics = {"behavior": session.scale, "spikes": session.spike_normalization}.get(part, ())
    return [sha256_of(values), *(hash_array(statistic) for statistic in statistics)]


def describe_source(source: LfpSource | None) -> list[object] | None:
    """Returns hashes of the channels before they are filled in, and of what standardizes and fills them in."""
    if source is None:
        return None
    mean, std, spatial = source.standardization.mean, source.standardization.std, source.standardization.spatial
    arrays = (mean, std, spatial.coupling, spatial.scale, spatial.inverse_scale, spatial.gain)
    settings = [spatial.sweeps, spatial.common_average]
    return [sha256_of(source.present), sha256_of(source.there), *(hash_array(array) for array in arrays), *settings]


def sha256_of(values: Tensor) -> str:
    """Returns the SHA-256 of the numbers in a tensor."""
    return hash_array(values.numpy())


def hash_array(values: np.ndarray) -> str:
    """Returns the SHA-256 of the numbers in an array."""
    digest = hashlib.sha256()
    for part in split_rows(slice(0, len(values)), values[:1].size):
        digest.update(np.ascontiguousarray(values[part]).data)
    return digest.hexdigest()
