"""Reads calibration recipes, which say how INT8 ranges are found.

The input is a file of `calibration/`. The output is a checked, frozen Recipe. It names the method that chooses a range,
how many windows of the recording the method sees and how they are drawn, which parts of the step stay in float32, and
whether the student is fine-tuned afterwards. A new recipe is one new TOML file, in the package or a file of your own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from edgedistill.assets import asset_folder
from edgedistill.config import load_named, names_in, parse
from edgedistill.errors import ConfigError, did_you_mean

DEFAULT_RECIPE = "percentile"
METHODS = ("minmax", "moving_minmax", "percentile", "entropy", "mse")
ROUNDINGS = ("gptq", "nearest")
FOUR_BIT_KEYS = ("weights", "rounding", "eight")


@dataclass(frozen=True)
class FineTune:
    """Says how the fake-quantized student is trained after the ranges are found."""

    steps: int = 100
    learning_rate: float = 3e-4  # at its peak
    learn_scales: bool = True  # if not, the ranges stay as they were found

    def __post_init__(self) -> None:
        _require(self.steps >= 1, "steps", self.steps, "at least 1")
        _require(0 < self.learning_rate <= 1, "learning_rate", self.learning_rate, "above 0, at most 1")


@dataclass(frozen=True)
class Recipe:
    """Says how the ranges of a student's activations are found."""

    name: str
    description: str  # one line: when to choose it
    method: str
    percentile: float = 99.99  # for method percentile: share in % of the magnitudes inside the range
    momentum: float = 0.1  # for method moving_minmax: weight of a new window
    windows: int = 64  # over all sessions
    window_bins: int = 256
    strata: int = 4  # of the behavior's speed; equally many windows come from each, 1 means uniform
    artefact_factor: float = 8.0  # a window with a bin beyond this many times the median largest bin is left out
    refit_readout: bool = True  # fit the read-out again on quantized latents, which costs nothing on the device
    keep: tuple[str, ...] = ()  # parts whose weights stay float32, named as in `numerics.part_names`
    finetune: FineTune | None = None
    weights: int = 8  # bits of the weights of the embedding and the layers: 8 or 4
    rounding: str = "gptq"  # of four-bit weights: column by column with the moments of the inputs, or to "nearest"
    eight: tuple[str, ...] = ()  # parts whose weights stay at eight bits where the others have four

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"unknown method '{self.method}'", expected=did_you_mean(self.method, METHODS))
        _require(0 < self.percentile <= 100, "percentile", self.percentile, "above 0, at most 100")
        _require(0 < self.momentum <= 1, "momentum", self.momentum, "above 0, at most 1")
        for name in ("windows", "window_bins", "strata"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        _require(1 <= self.artefact_factor < math.inf, "artefact_factor", self.artefact_factor, "1 or more")
        _require(self.weights in (4, 8), "weights", self.weights, "4 or 8 bits")
        if self.rounding not in ROUNDINGS:
            raise ConfigError(f"unknown rounding '{self.rounding}'", expected=did_you_mean(self.rounding, ROUNDINGS))
        if self.eight and self.weights == 8:
            raise ConfigError(
                "'eight' names parts beside four-bit ones", got="weights = 8", next_step="add weights = 4"
            )

    def to_json(self) -> dict[str, object]:
        """Returns the recipe as it stands in a file of ranges and in a manifest.

        A recipe for weights of eight bits has no keys of four-bit weights, so its files are those of older versions.
        """
        facts = asdict(self)
        return {key: value for key, value in facts.items() if self.weights == 4 or key not in FOUR_BIT_KEYS}

    def after_finetuning(self) -> Recipe:
        """Returns the recipe by which a fine-tuned student is quantized: its weights are rounded as in the training."""
        return replace(self, rounding="nearest")

    @classmethod
    def from_json(cls, mapping: Mapping[str, object], where: str = "recipe") -> Recipe:
        """Builds a recipe from `to_json`. Raises ConfigError for anything else."""
        return parse(cls, mapping, where)


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Returns the packaged recipe of that name, or the one in a TOML file of your own."""
    return load_named(Recipe, "recipe", name_or_path, asset_folder("calibration"))


def list_recipes() -> tuple[str, ...]:
    """Returns the names of the packaged recipes, in alphabetical order."""
    return names_in(asset_folder("calibration"))


def require_teacher(recipe: Recipe, teacher: Path | None) -> None:
    """Raises ConfigError where the recipe fine-tunes and no teacher is given."""
    if recipe.finetune is not None and teacher is None:
        raise ConfigError(
            f"recipe '{recipe.name}' fine-tunes the student, which needs its teacher",
            got="no --teacher",
            next_step="add --teacher DIR, what `edgedistill pretrain` wrote, or choose a recipe without [finetune]",
        )


def _require(ok: bool, name: str, got: float, expected: str) -> None:
    if not ok:
        raise ConfigError(f"'{name}' is out of range", got=got, expected=expected)
