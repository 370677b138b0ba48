"""Settings: what is written arrives typed; a mistake is answered with the file, the key and a hint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edgedistill.config import (
    NO_BANDS,
    Alignment,
    BandPower,
    Preset,
    StudentShape,
    StudentSize,
    TeacherSize,
    TrainingConfig,
    load,
    load_preset,
    parse,
    preset_names,
)
from edgedistill.errors import ConfigError

NANO = load_preset("nano").student


@dataclass(frozen=True)
class Filter:
    cutoff_hz: float
    order: int = 2


@dataclass(frozen=True)
class Chain:
    name: str
    low: Filter
    high: Filter | None = None
    causal: bool = True
    bands: tuple[Filter, ...] = ()
    weights: dict[str, float] | None = None


@st.composite
def shapes(draw: st.DrawFn) -> StudentShape:
    heads = draw(st.integers(1, 8))
    size = st.integers(1, 50)
    return StudentShape(
        channels=draw(size),
        outputs=draw(size),
        d=heads * draw(size),
        layers=draw(size),
        heads=heads,
        window=draw(st.integers(2, 500)),
        ff=draw(size),
        taps=draw(size),
        dilation=draw(size),
        lags=draw(st.integers(0, 50)),
    )


# ---------------------------------------------------------------- the loader


def test_nested_tables_lists_and_optionals_arrive_typed() -> None:
    mapping = {
        "name": "a",
        "low": {"cutoff_hz": 50},  # a whole number where a float is wanted
        "bands": [{"cutoff_hz": 4.0, "order": 3}],
        "weights": {"x": 1},
    }
    chain = parse(Chain, mapping, "chain.toml")
    assert chain == Chain("a", Filter(50.0), None, True, (Filter(4.0, 3),), {"x": 1.0})
    assert type(chain.low.cutoff_hz) is float


@pytest.mark.parametrize(
    ("mapping", "mentions"),
    [
        ({"name": "a", "low": {"cutof_hz": 50}}, ["low.cutof_hz", "did you mean 'cutoff_hz'"]),
        ({"name": "a"}, ["missing key 'low'"]),
        ({"name": 3, "low": {"cutoff_hz": 1}}, ["'name'", "a text in quotes", "3"]),
        ({"name": "a", "low": {"cutoff_hz": True}}, ["low.cutoff_hz", "a finite number"]),
        ({"name": "a", "low": {"cutoff_hz": float("nan")}}, ["low.cutoff_hz", "a finite number"]),
        ({"name": "a", "low": {"cutoff_hz": 1, "order": 2.0}}, ["low.order", "a whole number"]),
        ({"name": "a", "low": {"cutoff_hz": 1}, "causal": 1}, ["'causal'", "true or false"]),
        ({"name": "a", "low": 5}, ["'low'", "a table"]),
        ({"name": "a", "low": {"cutoff_hz": 1}, "bands": {}}, ["'bands'", "a list"]),
        ({"name": "a", "low": {"cutoff_hz": 1}, "bands": [{"cutoff_hz": "x"}]}, ["bands.0.cutoff_hz"]),
    ],
)
def test_a_mistake_is_named_with_its_file_and_key(mapping: Mapping[str, object], mentions: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(Chain, mapping, "chain.toml")
    for text in ["chain.toml", *mentions]:
        assert text in str(caught.value)


@given(key=st.text(min_size=1, max_size=12))
def test_an_unknown_key_never_passes_silently(key: str) -> None:
    assume(key not in NANO.__dataclass_fields__)
    with pytest.raises(ConfigError, match="unknown key"):
        parse(StudentSize, {**vars(NANO), key: 1}, "x.toml")


@given(key=st.sampled_from(sorted(NANO.__dataclass_fields__)), value=st.integers(-5, 5) | st.floats() | st.text())
def test_any_value_gives_a_size_or_a_config_error(key: str, value: object) -> None:
    try:
        size = parse(StudentSize, {**vars(NANO), key: value}, "x.toml")
    except ConfigError:
        return
    assert getattr(size, key) == value


def test_a_range_error_names_file_and_table(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    text = Path(str(_preset_file("nano"))).read_text().replace("warmup_share = 0.1", "warmup_share = 1.5")
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(Preset, path)
    for mention in (str(path), "[teacher_training]", "warmup_share", "1.5"):
        assert mention in str(caught.value)


def test_a_file_that_is_missing_or_not_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml"):
        load(Preset, tmp_path / "absent.toml")
    broken = tmp_path / "broken.toml"
    broken.write_bytes(b"name = \xff")
    with pytest.raises(ConfigError, match="not a TOML file"):
        load(Preset, broken)
    broken.write_text("name = [")
    with pytest.raises(ConfigError, match="not a TOML file"):
        load(Preset, broken)


# ---------------------------------------------------------------- shapes


@given(shapes())
def test_a_shape_survives_the_manifest(shape: StudentShape) -> None:
    assert StudentShape.from_json(json.loads(json.dumps(shape.to_json()))) == shape


@given(shapes())
def test_kept_rows_serve_the_read_out_and_the_oldest_tap(shape: StudentShape) -> None:
    oldest_tap = (shape.taps - 1) * shape.dilation
    assert shape.lag_rows >= max(shape.lags, oldest_tap)
    assert shape.lag_rows in (shape.lags, oldest_tap)
    assert shape.head_dim * shape.heads == shape.d


def test_the_receptive_field_is_that_of_stacked_windows() -> None:
    assert NANO.shape(32, 2).receptive_field == 2 * 199 + 1


@pytest.mark.parametrize("change", [{"heads": 3}, {"window": 1}, {"d": 0}, {"lags": -1}, {"taps": 0}])
def test_an_impossible_size_is_refused(change: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        StudentSize(**{**vars(NANO), **change})


def test_rotary_positions_need_even_heads() -> None:
    with pytest.raises(ConfigError, match="multiple of 8"):
        TeacherSize(d=60, layers=1, heads=4, ff=8, patch=4, span=1, predictor_layers=1, predictor_d=64, mask_share=0.5)


def test_a_segment_must_keep_bins_with_a_loss() -> None:
    with pytest.raises(ConfigError, match="no bin with a loss"):
        TrainingConfig(burn_in=512, segment_bins=512)


# ---------------------------------------------------------------- presets


def test_every_preset_loads_under_its_own_name() -> None:
    assert {"nano", "edge", "paper"} <= set(preset_names())
    for name in preset_names():
        assert load_preset(name).name == name


def test_the_default_students_see_bands_and_the_published_one_does_not() -> None:
    expected = ((12, 30), (30, 60), (70, 150), (150, 300))
    for name in ("edge", "nano"):
        assert load_preset(name).band_power == BandPower(expected, 100)
    assert load_preset("paper").band_power.bands == ()


def test_a_preset_without_band_power_sees_the_slow_lfp_alone(tmp_path: Path) -> None:
    path, text = tmp_path / "mine.toml", Path(str(_preset_file("nano"))).read_text()
    start = text.index("[band_power]")
    path.write_text(text[:start] + text[text.index("[student]") :])
    assert load_preset(path).band_power == NO_BANDS


@pytest.mark.parametrize(
    ("bands", "ms"), [([[30, 12]], 100), ([[0, 12]], 100), ([[12]], 100), ([[12, 30]], 0), ([[12, 30]], 5000)]
)
def test_impossible_bands_are_refused(bands: list[list[float]], ms: float) -> None:
    with pytest.raises(ConfigError):
        parse(BandPower, {"bands": bands, "ms": ms}, "x.toml")


def test_a_preset_may_be_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(Path(str(_preset_file("edge"))).read_text().replace('"edge"', '"mine"'))
    assert load_preset(path).name == "mine"
    assert load_preset(str(path)).student == load_preset("edge").student


def test_an_unknown_preset_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'nano'"):
        load_preset("nanno")


def _preset_file(name: str) -> Path:
    import edgedistill.config

    return Path(edgedistill.config.__file__).parent / "presets" / f"{name}.toml"


@pytest.mark.parametrize("kind", ["whitened", "cosine", "mse"])
def test_a_centring_that_would_do_nothing_is_refused(kind: str) -> None:
    assert Alignment("subspace", "standardized").centring == "standardized"
    with pytest.raises(ConfigError, match="does not centre") as refusal:
        Alignment(kind, "standardized")
    assert refusal.value.got == "--centring standardized"
