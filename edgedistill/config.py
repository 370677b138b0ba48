"""Reads settings. A TOML file goes in, and a checked and frozen dataclass comes out.

The dataclass is the schema. Its field names are the known keys, its annotations are the types, and its `__post_init__`
checks the ranges. The error for an unknown key suggests the most similar known one, so that a misspelt setting is never
silently ignored. The presets, which hold the sizes of the models and how they are trained, are TOML files in
`edgedistill/presets`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from importlib import resources
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from edgedistill.errors import ConfigError, did_you_mean
from edgedistill.limits import MOST_SETTINGS_BYTES, read_plain

if sys.version_info >= (3, 11):
    from importlib.resources.abc import Traversable

    import tomllib
else:
    from importlib.abc import Traversable

    import tomli as tomllib

T = TypeVar("T")
SHORTEST_BAND_MS, LONGEST_BAND_MS = 1, 1000
MOST_NUMBERS = 1 << 28  # in the state of a student, and in its weights
NAME_IT = "pass one of these names, or the path of a .toml file"


# ---------------------------------------------------------------- the strict loader


def load(cls: type[T], path: Path | Traversable) -> T:
    """Returns the TOML file at `path` as a `cls`. Raises ConfigError, which names the file and the key."""
    return parse(cls, read_toml(path), str(path))


def load_named(cls: type[T], kind: str, name_or_path: str | Path, folder: Traversable, next_step: str = NAME_IT) -> T:
    """Returns the settings of that name from `folder`, or those in a TOML file of the user's.

    `kind` says in errors what is named ("preset"), and `next_step` how to find the known names. Raises ConfigError.
    """
    path = Path(name_or_path)
    if path.suffix == ".toml":
        return load(cls, path)
    known = names_in(folder)
    if str(name_or_path) not in known:
        expected = did_you_mean(str(name_or_path), known)
        raise ConfigError(f"unknown {kind} '{name_or_path}'", expected=expected, next_step=next_step)
    return load(cls, folder / f"{name_or_path}.toml")


def names_in(folder: Traversable) -> tuple[str, ...]:
    """Returns the names of the TOML files in a folder, without their ending and in alphabetical order."""
    return tuple(sorted(Path(file.name).stem for file in folder.iterdir() if file.name.endswith(".toml")))


def read_toml(path: Path | Traversable) -> dict[str, Any]:
    """Returns the tables of a TOML file. Raises ConfigError if the file is missing or is not TOML."""
    try:
        data = read_plain(path, MOST_SETTINGS_BYTES) if isinstance(path, Path) else path.read_bytes()
        return tomllib.loads(data.decode("utf-8").replace("\r\n", "\n"))
    except OSError as error:
        raise ConfigError(f"{path}: this file cannot be read", got=error.strerror or error) from error
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, or numbers and lists without an end
        raise ConfigError(f"{path}: not a TOML file", got=error, expected="key = value, see toml.io") from error


def parse(cls: type[T], mapping: Mapping[str, object], where: str) -> T:
    """Returns a mapping (TOML tables or JSON) as a frozen dataclass, with nested ones inside.

    Fields may be int, float (which accepts an integer), str, bool, tuple[X, ...], dict[str, X], X | None or another
    dataclass. `where` names the source in errors. Raises ConfigError.
    """
    return _build(cls, mapping, where, ())


def _build(cls: type[T], mapping: Mapping[str, object], where: str, keys: tuple[str, ...]) -> T:
    known = {field.name: field for field in fields(cast(Any, cls))}
    for key in mapping:
        if key not in known:
            raise ConfigError(f"{where}: unknown key '{_dotted(keys, key)}'", expected=did_you_mean(key, known))
    for name, field in known.items():
        if name not in mapping and field.default is MISSING and field.default_factory is MISSING:
            raise ConfigError(f"{where}: missing key '{_dotted(keys, name)}'", got=sorted(mapping))
    kinds = get_type_hints(cls)
    values = {key: _value(kinds[key], value, where, (*keys, key)) for key, value in mapping.items()}
    try:
        return cls(**values)
    except ConfigError as error:  # the range check of a dataclass does not know the name of its table
        table = f"[{'.'.join(keys)}] " if keys else ""
        what, step = f"{where}: {table}{error.what}", error.next_step
        raise ConfigError(what, got=error.got, expected=error.expected, causes=error.causes, next_step=step) from error


def _value(kind: Any, value: object, where: str, keys: tuple[str, ...]) -> object:
    inner = [part for part in get_args(kind) if part is not NoneType and part is not ...]
    if NoneType in get_args(kind):  # JSON has null for None, while TOML leaves the key out
        return None if value is None else _value(inner[0], value, where, keys)
    if is_dataclass(kind) and isinstance(value, Mapping):
        return _build(cast(Any, kind), value, where, keys)
    if get_origin(kind) is tuple and isinstance(value, (list, tuple)):
        return tuple(_value(inner[0], v, where, (*keys, str(i))) for i, v in enumerate(value))
    if get_origin(kind) is dict and isinstance(value, Mapping):
        return {str(k): _value(inner[1], v, where, (*keys, str(k))) for k, v in value.items()}
    if kind is float and type(value) in (int, float) and math.isfinite(cast(float, value)):
        return float(cast(float, value))
    if kind in (int, str, bool) and type(value) is kind:  # not isinstance, since True is also an int
        return value
    expected = _KIND_NAMES.get(get_origin(kind) or kind, "a table")
    raise ConfigError(f"{where}: wrong type for '{'.'.join(keys)}'", got=repr(value), expected=expected)


_KIND_NAMES = {
    float: "a finite number",
    int: "a whole number",
    str: "a text in quotes",
    bool: "true or false",
    tuple: "a list",
}


def _dotted(keys: tuple[str, ...], key: str) -> str:
    return ".".join((*keys, key))


# ---------------------------------------------------------------- range checks


def _at_least(config: object, **minimum: int) -> None:
    for name, least in minimum.items():
        if getattr(config, name) < least:
            raise ConfigError(f"'{name}' is too small", got=getattr(config, name), expected=f"at least {least}")


def _within(config: object, low: float, high: float, *names: str) -> None:
    for name in names:
        if not low <= getattr(config, name) <= high:
            got = getattr(config, name)
            raise ConfigError(f"'{name}' is out of range", got=got, expected=f"{low:g} to {high:g}")


def _divides(divisor: int, d: int) -> None:
    if d % divisor:
        raise ConfigError("the width does not split into heads", got=d, expected=f"a multiple of {divisor}")


# ---------------------------------------------------------------- shapes


@dataclass(frozen=True)
class StudentSize:
    """Holds the size of a student as a preset fixes it. A session adds the numbers of channels and outputs."""

    d: int
    layers: int
    heads: int
    window: int  # bins that a layer attends to, the new one included
    ff: int  # hidden width of the gated MLP
    taps: int  # bins that the value embedding sees
    dilation: int  # bins between taps
    lags: int  # bins before the new one that the read-out sees

    def __post_init__(self) -> None:
        _at_least(self, d=1, layers=1, heads=1, window=2, ff=1, taps=1, dilation=1, lags=0)
        _divides(self.heads, self.d)

    def shape(self, channels: int, outputs: int) -> StudentShape:
        """Returns the shape of a student of this size for a session's channels and behavior outputs."""
        return StudentShape(channels, outputs, **asdict(self))


@dataclass(frozen=True)
class StudentShape:
    """Holds the numbers that fix every tensor of a student for one session's array. Each token is one bin."""

    channels: int
    outputs: int
    d: int
    layers: int
    heads: int
    window: int
    ff: int
    taps: int
    dilation: int
    lags: int

    def __post_init__(self) -> None:
        _at_least(self, channels=1, outputs=1, d=1, layers=1, heads=1, window=2, ff=1, taps=1, dilation=1)
        _at_least(self, lags=0)
        _divides(self.heads, self.d)
        kept = 2 * self.layers * self.d * (self.window - 1) + self.lag_rows * self.channels
        read = self.layers * self.d * (4 * self.d + 3 * self.ff) + self.taps * self.channels * self.d
        read += (self.lags + 1) * self.channels * self.outputs
        if max(kept, read, self.layers * self.heads * self.window) > MOST_NUMBERS:
            got = f"{kept} numbers of state and {read} weights"
            raise ConfigError("no device can run a student of this shape", got=got, expected=f"at most {MOST_NUMBERS}")

    @property
    def size(self) -> StudentSize:
        """Returns the size without the numbers that a session adds."""
        return StudentSize(**{field.name: getattr(self, field.name) for field in fields(StudentSize)})

    @property
    def head_dim(self) -> int:
        """Returns the width of one attention head."""
        return self.d // self.heads

    @property
    def receptive_field(self) -> int:
        """Returns how many bins the attention spans, with the new one (docs/numerics.md, "Window semantics")."""
        return self.layers * (self.window - 1) + 1

    @property
    def lag_rows(self) -> int:
        """Returns the number of bins kept for the read-out and the dilated taps, without the new one."""
        return max(self.lags, (self.taps - 1) * self.dilation)

    def to_json(self) -> dict[str, int]:
        """Returns the shape as it stands in a manifest."""
        return asdict(self)

    @classmethod
    def from_json(cls, mapping: Mapping[str, object], where: str = "model shape") -> StudentShape:
        """Returns the shape that `to_json` wrote. Raises ConfigError for anything else."""
        return parse(cls, mapping, where)


@dataclass(frozen=True)
class TeacherSize:
    """Holds the size of a masked autoencoder over patch tokens, which has an encoder and a small predictor."""

    d: int
    layers: int
    heads: int
    ff: int
    patch: int  # units (teacher) or channels (patch student) in one token
    span: int  # bins in one token
    predictor_layers: int
    predictor_d: int
    mask_share: float  # share of the tokens that the encoder does not see in training

    def __post_init__(self) -> None:
        _at_least(self, d=1, layers=1, heads=1, ff=1, patch=1, span=1, predictor_layers=1, predictor_d=1)
        _within(self, 0, 0.95, "mask_share")
        _divides(2 * self.heads, self.d)  # rotary positions rotate pairs of numbers
        _divides(2 * self.heads, self.predictor_d)


@dataclass(frozen=True)
class BandPower:
    """Holds the bands whose log power stands beside the slow LFP. Of them a session takes those that its rate holds."""

    bands: tuple[tuple[float, float], ...] = ()  # (low, high) in Hz
    ms: float = 100  # time constant with which their power is smoothed

    def __post_init__(self) -> None:
        for band in self.bands:
            if len(band) != 2 or not 0 < band[0] < band[1]:
                raise ConfigError("this is no band", got=list(band), expected="[low, high] in Hz")
        _within(self, SHORTEST_BAND_MS, LONGEST_BAND_MS, "ms")


NO_BANDS = BandPower()


# ---------------------------------------------------------------- training and presets


ALIGNMENTS = ("whitened", "cosine", "mse", "subspace")
CENTRINGS = ("mean", "standardized")


@dataclass(frozen=True)
class Alignment:
    """Says how a student is compared with the teacher (docs/decisions.md, 2)."""

    kind: str = "whitened"
    centring: str = "mean"  # `subspace` only: a batch loses its mean, or is also divided by its deviation

    def __post_init__(self) -> None:
        for what, name, known in (("alignment", self.kind, ALIGNMENTS), ("centring", self.centring, CENTRINGS)):
            if name not in known:
                raise ConfigError(f"unknown {what} '{name}'", expected=did_you_mean(name, known))
        if self.kind != "subspace" and self.centring != CENTRINGS[0]:
            raise ConfigError(
                f"the alignment '{self.kind}' does not centre the student's activations",
                got=f"--centring {self.centring}",
                next_step="add --alignment subspace, or leave out --centring",
            )


DEFAULT_ALIGNMENT = Alignment()


@dataclass(frozen=True)
class TrainingConfig:
    """Holds the schedule of an optimizer and the augmentation of its inputs."""

    bins_per_step: int = 4096  # bins in one optimizer step, over all its segments
    segment_bins: int = 512  # contiguous bins in one segment
    burn_in: int = 64  # bins at the start of a segment that the loss leaves out
    learning_rate: float = 2e-3  # peak
    weight_decay: float = 0.05
    warmup_share: float = 0.1  # share of the steps in which the learning rate rises
    clip_norm: float = 1.0
    steps: int = 400
    patience: int = 6  # evaluations without improvement after which training stops
    eval_every: int = 50  # steps from one evaluation to the next
    damaged_share: float = 0.5  # share of the segments to which the following is done
    channel_dropout: float = 0.5  # largest share of the channels that a segment loses
    bank_loss: float = 0.25  # probability that a segment loses a bank of channels in place of single ones
    gain_drift: float = 0.1  # standard deviation of a channel's log gain
    noise: float = 0.5  # largest standard deviation, in units of the models' input

    def __post_init__(self) -> None:
        _at_least(self, bins_per_step=1, segment_bins=1, burn_in=0, steps=1, patience=1, eval_every=1)
        _within(self, 0, 1, "weight_decay", "warmup_share", "damaged_share", "channel_dropout", "bank_loss")
        _within(self, 0, math.inf, "gain_drift", "noise")
        _within(self, math.ulp(0.0), math.inf, "learning_rate", "clip_norm")
        if self.burn_in >= self.segment_bins or self.segment_bins > self.bins_per_step:
            raise ConfigError(
                "an optimizer step holds no bin with a loss",
                got=f"{self.burn_in}, {self.segment_bins}, {self.bins_per_step}",
                expected="burn_in < segment_bins <= bins_per_step",
            )


@dataclass(frozen=True)
class Preset:
    """Holds the sizes of the models and the schedules of their training, under one name."""

    name: str
    student: StudentSize
    teacher: TeacherSize
    patch_student: TeacherSize  # the published student: patch tokens, bidirectional
    teacher_training: TrainingConfig
    training: TrainingConfig
    band_power: BandPower = NO_BANDS  # what a student sees beside the slow LFP


def load_preset(name_or_path: str | Path) -> Preset:
    """Returns the packaged preset of that name, or the preset in a TOML file of the user's. Raises ConfigError."""
    return load_named(Preset, "preset", name_or_path, _presets())


def preset_names() -> tuple[str, ...]:
    """Returns the names of the packaged presets in alphabetical order."""
    return names_in(_presets())


def _presets() -> Traversable:
    return resources.files("edgedistill") / "presets"
