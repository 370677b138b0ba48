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


def session_inputs(session: TrainingSession, *parts: Tensor | None) -> list[object]:
    """Returns what a stage uses from a session, as JSON, for the key of that stage in the cache.

    The key holds hashes of the numbers and not of the file, because one file gives other numbers with another behavior
    series, line frequency or gap between the blocks.
    """
    blocks = [[block.start, block.stop] for block in (session.split.train, session.split.validation)]
    values = [None if part is None else sha256_of(part) for part in parts]
    return [session.id, session.array, session.settled, blocks, values, sha256_of(session.valid)]


def sha256_of(values: Tensor) -> str:
    """Returns the SHA-256 of the numbers in a tensor."""
    digest = hashlib.sha256()
    for part in split_rows(slice(0, len(values)), values[:1].numel()):
        digest.update(np.ascontiguousarray(values[part].numpy()).data)
    return digest.hexdigest()
