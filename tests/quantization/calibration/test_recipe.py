"""Every packaged recipe loads, a wrong name is answered with the nearest one, and values are checked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgedistill.errors import ConfigError
from edgedistill.quantization.calibration.observers import make_observer
from edgedistill.quantization.calibration.recipe import (
    DEFAULT_RECIPE,
    METHODS,
    Recipe,
    list_recipes,
    load_recipe,
    require_teacher,
)

RECIPES = ("entropy", "minmax", "moving-minmax", "mse", "percentile", "qat")


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
    assert (recipe.finetune is not None) == (name == "qat")
    make_observer(recipe.method, "x", percentile=recipe.percentile, momentum=recipe.momentum)


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
