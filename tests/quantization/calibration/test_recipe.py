"""Every packaged recipe loads, a wrong name is answered with the nearest one, and values are checked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgedistill.errors import ConfigError, EdgeDistillError
from edgedistill.numerics.tensors import four_bit_parts
from edgedistill.quantization.calibration.observers import make_observer
from edgedistill.quantization.calibration.ranges import choose_four_bit_parts, require_recipe_fits
from edgedistill.quantization.calibration.recipe import (
    DEFAULT_RECIPE,
    METHODS,
    Recipe,
    list_recipes,
    load_recipe,
    require_teacher,
)

from ...numerics.students import SMALL

RECIPES = ("entropy", "four-bit", "four-bit-qat", "minmax", "moving-minmax", "mse", "percentile", "qat")


def test_the_packaged_recipes_are_listed() -> None:
    assert list_recipes() == RECIPES
    assert DEFAULT_RECIPE in RECIPES
    assert {load_recipe(name).method for name in RECIPES} == set(METHODS)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_called_as_its_file_and_comes_back_from_json(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert (recipe.finetune is not None) == name.endswith("qat")
    make_observer(recipe.method, "x", percentile=recipe.percentile, momentum=recipe.momentum)


def test_a_recipe_for_eight_bits_is_written_as_it_always_was() -> None:
    """Files of ranges with weights of eight bits do not change."""
    four = load_recipe("four-bit").to_json()
    assert {"weights", "rounding", "eight"} <= four.keys()
    assert load_recipe("mse").to_json().keys() == four.keys() - {"weights", "rounding", "eight"}
    assert load_recipe("qat").after_finetuning().to_json() == load_recipe("qat").to_json()


def test_which_parts_have_four_bits() -> None:
    shape, four = SMALL, load_recipe("four-bit")
    assert choose_four_bit_parts(shape, load_recipe("mse")) == ()
    assert choose_four_bit_parts(shape, four) == four_bit_parts(shape)
    some = replace(four, eight=("layers.0.out",), keep=("layers.1.down",))
    assert set(four_bit_parts(shape)) - set(choose_four_bit_parts(shape, some)) == {"layers.0.out", "layers.1.down"}
    with pytest.raises(EdgeDistillError, match=r"'layers\.0\.outt'[\s\S]*layers\.0\.out"):
        require_recipe_fits(shape, replace(four, eight=("layers.0.outt",)))


def test_an_unknown_recipe_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown recipe 'entropie'[\s\S]*did you mean 'entropy'"):
        load_recipe("entropie")


def write(path: Path, text: str) -> Path:
    path.write_text('name = "mine"\ndescription = "my own"\n' + text)
    return path


def test_a_recipe_can_be_a_file_of_ones_own(tmp_path: Path) -> None:
    text = 'method = "percentile"\npercentile = 99\nkeep = ["readout"]\n[finetune]\nsteps = 5\n'
    recipe = load_recipe(write(tmp_path / "mine.toml", text))
    assert (recipe.percentile, recipe.keep, recipe.windows) == (99.0, ("readout",), 64)
    assert recipe.finetune is not None
    assert (recipe.finetune.steps, recipe.finetune.learn_scales) == (5, True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('method = "mse"\nwindow = 3\n', "mine.toml: unknown key 'window'[\\s\\S]*did you mean 'windows'"),
        ('method = "mse"\n[finetune]\nstep = 3\n', "unknown key 'finetune.step'[\\s\\S]*did you mean 'steps'"),
        ('method = "entropie"\n', "unknown method 'entropie'[\\s\\S]*did you mean 'entropy'"),
        ("windows = 3\n", "missing key 'method'"),
        ('method = "mse"\nweights = 4\nrounding = "nearst"\n', "unknown rounding[\\s\\S]*did you mean 'nearest'"),
        ('method = "mse"\neight = ["layers.0.out"]\n', "'eight' names parts beside four-bit ones"),
        ('method = "mse"\n[finetune]\nsteps = 0\n', r"\[finetune\] 'steps' is out of range"),
    ],
)
def test_mistakes_in_a_recipe_name_the_file(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_recipe(write(tmp_path / "mine.toml", text))


@pytest.mark.parametrize(
    "change",
    [
        {"percentile": 0.0},
        {"percentile": 100.1},
        {"momentum": 0.0},
        {"windows": 0},
        {"window_bins": 0},
        {"strata": 0},
        {"artefact_factor": 0.5},
        {"weights": 6},
    ],
)
def test_values_out_of_range_are_named(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"'{next(iter(change))}' is out of range"):
        replace(load_recipe("mse"), **change)


def test_fine_tuning_needs_a_teacher() -> None:
    require_teacher(load_recipe("mse"), None)
    require_teacher(load_recipe("qat"), Path("teacher"))
    with pytest.raises(ConfigError, match=r"'qat'[\s\S]*--teacher"):
        require_teacher(load_recipe("qat"), None)
